"""What a policy knows of its environment: how well it predicts next observations, beside a copier of the
previous one.

Consecutive observations share most of their tokens, so a number alone flatters: every one here has that of
the copier on the same transitions beside it. Only transitions with an earlier observation in their episode
count (not the first step), for the policy and for the copier alike.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paw_hpc.build import Machinery
from paw_hpc.evaluation.episodes.copier import copied_tokens
from paw_hpc.evaluation.results import Prediction
from paw_hpc.evaluation.statistics import cluster_interval, ratio_interval
from paw_hpc.experience import Floats, Group, Ids, Pool, Transition
from paw_hpc.rollout.engines.base import Engine, GenerationRequest
from paw_hpc.system import distributed
from paw_hpc.system.seeding import generator

EXACT_TRANSITIONS = 512
"""Transitions (a seeded choice) whose next observation is generated greedily and compared with the true
one."""


@dataclass(slots=True)
class Seen:
    """One transition with an observation after it, and what the policy says of that."""

    transition: Transition
    previous: Ids | None
    """The observation before the action; None at an episode's first step."""
    logp: Floats
    """float32[tokens]: of the true next observation."""
    game: str
    task_type: str
    success: bool
    predicted: Ids | None = None
    """The greedy prediction, as long as the true next observation at most; None: not generated."""

    @property
    def tokens(self) -> int:
        return len(self.transition.observation_ids)

    @property
    def nats(self) -> float:
        """Of all tokens of the true next observation together."""
        return float(-self.logp.astype(np.float64).sum())

    @property
    def exact(self) -> bool | None:
        """The greedy prediction is the next observation, token by token."""
        return (
            None
            if self.predicted is None
            else np.array_equal(self.predicted, self.transition.observation_ids)
        )


def observe(machinery: Machinery, groups: Sequence[Group]) -> list[Seen]:
    """Cross-entropies of every true next observation in these groups, under the current weights. A
    collective."""
    seen = []
    for group in groups:
        pool = Pool.from_groups([group])
        if not any(len(t.observation_ids) for t in pool.transitions):
            continue
        logp = machinery.policy.observation_logp(pool).cpu().numpy()
        ends = np.cumsum([len(t.observation_ids) for t in pool.transitions])
        for number, (transition, part) in enumerate(
            zip(pool.transitions, np.split(logp, ends[:-1]), strict=True)
        ):
            if not len(part):
                continue
            episode = pool.episodes[int(pool.episode[number])]
            previous = (
                episode.transitions[transition.step - 1].observation_ids if transition.step > 0 else None
            )
            seen.append(Seen(transition, previous, part, group.task_id, group.task_type, episode.success))
    return seen


def predictions(machinery: Machinery, source: str, seen: Sequence[Seen]) -> tuple[Prediction, ...]:
    """One row for all transitions, one per outcome, one per task type; none where there is nothing to
    predict. A collective.

    Args:
        source: whose play it is; `own` or `foreign`.
    """
    counted = [s for s in seen if s.previous is not None]
    if not counted:
        return ()
    _generate(machinery, counted)
    copier = Copier(counted)
    splits = {
        "all": counted,
        "success": [s for s in counted if s.success],
        "failure": [s for s in counted if not s.success],
    }
    splits |= {
        name: [s for s in counted if s.task_type == name] for name in sorted({s.task_type for s in counted})
    }
    return tuple(_row(source, name, part, copier) for name, part in splits.items() if part)


class Copier:
    """Predicts that the previous observation comes again: token by token with one confidence, and otherwise
    by how often tokens are not copies.

    Both are fitted to the very transitions that it is judged on, so it is a little better than any copier
    that would have to be fitted elsewhere.
    """

    def __init__(self, seen: Sequence[Seen]) -> None:
        self._hits = {
            id(s): copied_tokens(s.previous, s.transition.observation_ids)
            for s in seen
            if s.previous is not None
        }
        hits, tokens = sum(int(h.sum()) for h in self._hits.values()), sum(s.tokens for s in seen)
        self._confidence = min(max(hits / tokens, 1e-6), 1 - 1e-6)
        missed = Counter(int(t) for s in seen for t in s.transition.observation_ids[~self._hits[id(s)]])
        self._missed = {token: math.log(count / missed.total()) for token, count in missed.items()}

    def nats(self, seen: Seen) -> float:
        """Of all tokens of the true next observation together."""
        hits = self._hits[id(seen)]
        rest = sum(
            math.log(1 - self._confidence) + self._missed[int(t)]
            for t in seen.transition.observation_ids[~hits]
        )
        return -float(hits.sum()) * math.log(self._confidence) - rest


def _row(source: str, split: str, seen: Sequence[Seen], copier: Copier) -> Prediction:
    tokens, games = [float(s.tokens) for s in seen], [s.game for s in seen]
    nats = [s.nats for s in seen]
    generated = [s for s in seen if s.exact is not None]
    exact = [float(bool(s.exact)) for s in generated]
    return Prediction(
        source=source,
        split=split,
        transitions=len(seen),
        tokens=int(sum(tokens)),
        ce=sum(nats) / sum(tokens),
        ce_interval=ratio_interval(nats, tokens, games),
        copy_ce=sum(map(copier.nats, seen)) / sum(tokens),
        generated=len(generated),
        exact=sum(exact) / len(exact) if exact else None,
        exact_interval=cluster_interval(exact, [s.game for s in generated]) if exact else None,
        copy_exact=sum(_same(s) for s in generated) / len(generated) if generated else None,
    )


def _same(seen: Seen) -> bool:
    return seen.previous is not None and np.array_equal(seen.previous, seen.transition.observation_ids)


def _generate(machinery: Machinery, seen: Sequence[Seen]) -> None:
    """Sets `predicted` of up to EXACT_TRANSITIONS of them. Left out: those that could be longer than the
    model's context (see Machinery)."""
    rollout = machinery.recipe.rollout
    fitting = [s for s in seen if _length(s) <= rollout.max_prompt_tokens + rollout.max_response_tokens]
    chosen = generator(0, "exact-match").permutation(len(fitting))[:EXACT_TRANSITIONS]
    part = [fitting[int(i)] for i in sorted(chosen)]
    # who leads has an engine, and all hear of it
    found = distributed.on_main(lambda: machinery.run(_greedy(machinery.engine, part)))
    for s, predicted in zip(part, found, strict=True):
        s.predicted = predicted


def _length(seen: Seen) -> int:
    t = seen.transition
    return len(t.prompt_ids) + len(t.response_ids) + len(t.bridge_ids) + len(t.observation_ids)


async def _greedy(engine: Engine | None, seen: Sequence[Seen]) -> list[Ids]:
    assert engine is not None

    async def predict(number: int, s: Seen) -> Ids:
        t = s.transition
        context = np.concatenate([t.prompt_ids, t.response_ids, t.bridge_ids])
        try:
            answer = await engine.generate(
                GenerationRequest(number, context, seed=0, temperature=0.0, max_tokens=s.tokens)
            )
        finally:
            engine.leave(number)
        return answer.ids

    for number in range(len(seen)):
        engine.join(number)
    return list(await asyncio.gather(*(predict(number, s) for number, s in enumerate(seen))))
