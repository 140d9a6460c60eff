"""A panel gives the same numbers on any number of workers, in any batches; predictions are those of the
model, beside a copier's."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from paw_hpc.build import Machinery
from paw_hpc.evaluation import diagnostics
from paw_hpc.evaluation.diagnostics import Copier, Seen, copied_tokens, observe, predictions
from paw_hpc.evaluation.panel import Evaluation, evaluate, evaluate_path, rules
from paw_hpc.evaluation.results import read_evaluations
from paw_hpc.experience import Group
from paw_hpc.loop import train
from paw_hpc.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from paw_hpc.recipe.shipped import protocol_recipe
from paw_hpc.rollout.event_loop import EventLoop
from tests.factories import random_groups

PANEL = "valid_seen:5@0"


def recipe(
    *, workers: int = 1, max_batch: int = 128, batching: str = "deterministic", seed: int = 0
) -> Recipe:
    return parse_recipe(
        {
            "name": "eval",
            "seed": seed,
            "updates": 1,
            "threads": 1,
            "env": {
                "prompt": "compact",
                "max_steps": 4,
                "workers": workers,
                "task_types": ["pick_and_place_simple"],
                "train_games": 2,
            },
            "model": {"path": "warm-start"},
            "rollout": {
                "groups": 2,
                "group_size": 2,
                "max_prompt_tokens": 512,
                "max_response_tokens": 12,
                "max_batch": max_batch,
                "batching": batching,
            },
            "algorithm": {"kl_coefficient": 0.0, "old_logp": "rollout"},
            "optimizer": {"lr": 1e-4},
            "eval": {"panel": PANEL, "temperature": 1.0, "repeats": 2},
        }
    )


def play(chosen: Recipe) -> Evaluation:
    with EventLoop() as runner, Machinery(chosen, runner) as machinery:
        return evaluate(machinery, chosen, update=0, label="x", foreign=[])


@pytest.fixture(scope="module")
def one_worker() -> Evaluation:
    return play(recipe())


@pytest.mark.parametrize(
    ("workers", "max_batch", "batching"),
    [(8, 128, "deterministic"), (2, 3, "deterministic"), (8, 4, "eager")],
    ids=["8 workers", "small batches", "as it comes"],
)
def test_workers_and_batches_do_not_change_a_number(
    one_worker: Evaluation, workers: int, max_batch: int, batching: str
) -> None:
    expected, found = (
        one_worker.result,
        play(recipe(workers=workers, max_batch=max_batch, batching=batching)).result,
    )
    # tasks, seeds, outcomes, steps, invalid actions, returns, in order
    assert found.episodes == expected.episodes
    assert (found.success, found.interval, found.per_task_type) == (
        expected.success,
        expected.interval,
        expected.per_task_type,
    )
    assert found.observation_ce == pytest.approx(expected.observation_ce, rel=1e-5)
    for a, b in zip(found.predictions, expected.predictions, strict=True):
        assert (a.split, a.transitions, a.generated, a.exact, a.copy_exact) == (
            b.split,
            b.transitions,
            b.generated,
            b.exact,
            b.copy_exact,
        )
        assert (a.ce, a.copy_ce) == pytest.approx((b.ce, b.copy_ce), rel=1e-5)


def test_another_seed_plays_other_episodes_of_the_same_games(one_worker: Evaluation) -> None:
    other = play(recipe(seed=1)).result
    assert [e.task_id for e in other.episodes] == [e.task_id for e in one_worker.result.episodes]
    assert {e.seed for e in other.episodes}.isdisjoint(e.seed for e in one_worker.result.episodes)
    assert len({e.seed for e in one_worker.result.episodes}) == 10  # one for each game and repeat
    assert [e.steps for e in other.episodes] != [
        e.steps for e in one_worker.result.episodes
    ] or other.episodes != one_worker.result.episodes


def test_a_task_is_played_alike_in_every_panel_that_has_it(one_worker: Evaluation) -> None:
    """Its place differs: the first game is left out. By the older rule, kept as a key, the seeds are those of
    places, and so of other games."""

    def seeds(by: str, panel: str) -> dict[tuple[str, int], int]:
        chosen = recipe()
        chosen = chosen.model_copy(
            update={"eval": chosen.eval.model_copy(update={"seeds": by, "panel": panel})}
        )
        with EventLoop() as runner, Machinery(chosen, runner) as machinery:
            whole = machinery.benchmark.panel(panel)
            machinery.benchmark.panel = lambda _: dataclasses.replace(whole, tasks=whole.tasks[1:])  # type: ignore[method-assign]
            part = evaluate(machinery, chosen, update=0, label="x").result
        return {(e.task_id, e.repeat): e.seed for e in part.episodes}

    whole = {(e.task_id, e.repeat): e.seed for e in one_worker.result.episodes}
    by_task, by_place = seeds("task", PANEL), seeds("place", PANEL)
    assert len(by_task) == 8 and by_task.items() < whole.items()
    assert by_place.keys() == by_task.keys() and not set(by_place.values()) & set(by_task.values())


def test_exact_means_what_greedy_decoding_says(one_worker: Evaluation) -> None:
    """Observations replaced by the model's own greedy ones are exact; one token changed, they are not;
    teacher forcing agrees."""
    with EventLoop() as runner, Machinery(recipe(), runner) as machinery:
        groups = [with_greedy_observations(group, machinery) for group in one_worker.groups[:2]]
        seen = observe(machinery, groups)
        by_argmax = [argmax_exact(machinery, s) for s in seen if s.previous is not None]
        found = predictions(machinery, "own", seen)[0]
        for s in seen:
            s.predicted = None
            s.transition.observation_ids = np.append(
                s.transition.observation_ids[:-1], (s.transition.observation_ids[-1] + 1) % 100
            ).astype(np.int32)
        changed = predictions(machinery, "own", seen)[0]
    assert found.generated == len(by_argmax) >= 4 and all(by_argmax) and found.exact == 1.0
    assert changed.exact == 0.0


def with_greedy_observations(group: Group, machinery: Machinery) -> Group:
    tokenizer = machinery.policy.tokenizer  # type: ignore[attr-defined]
    model = machinery.policy.model  # type: ignore[attr-defined]

    def predicted(t: diagnostics.Transition) -> diagnostics.Transition:
        ids = np.concatenate([t.prompt_ids, t.response_ids, t.bridge_ids]).tolist()
        made: list[int] = []
        while len(made) < 6 and tokenizer.eos_token_id not in made:
            made.append(int(logits(model, ids + made)[-1].argmax()))
        return dataclasses.replace(t, observation_ids=np.array(made, dtype=np.int32))

    return dataclasses.replace(
        group,
        episodes=[
            dataclasses.replace(e, transitions=[predicted(t) for t in e.transitions]) for e in group.episodes
        ],
    )


@torch.no_grad()
def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """[T, V], with the whole sequence in one pass."""
    from paw_hpc.policy.packed import Packing, hidden_states

    hidden = hidden_states(
        model, torch.tensor(ids), torch.arange(len(ids)), Packing.of(torch.tensor([0, len(ids)]), "cpu")
    )  # type: ignore[arg-type]
    return hidden @ model.get_output_embeddings().weight.T  # type: ignore[operator]


def argmax_exact(machinery: Machinery, seen: Seen) -> bool:
    t = seen.transition
    before = len(t.prompt_ids) + len(t.response_ids) + len(t.bridge_ids)
    ids = np.concatenate([t.prompt_ids, t.response_ids, t.bridge_ids, t.observation_ids]).tolist()
    return (
        logits(machinery.policy.model, ids)[before - 1 : -1].argmax(-1).tolist() == t.observation_ids.tolist()
    )  # type: ignore[attr-defined]


def test_the_copier_goes_on_behind_what_it_copied() -> None:
    def of(previous: list[int], following: list[int]) -> list[bool]:
        return copied_tokens(np.array(previous, dtype=np.int32), np.array(following, dtype=np.int32)).tolist()

    assert of([1, 2, 3], [1, 2, 3]) == [True, True, True]
    assert of([1, 2, 3, 4], [1, 3, 4]) == [True, False, True]  # one left out: found again behind it
    assert of([1, 2, 3], [1, 9, 2, 3]) == [True, False, True, True]  # one put in: it waits
    assert of([1, 2], [1, 2, 3]) == [True, True, False] and of([], [5]) == [False]


def test_the_copiers_cross_entropy_is_that_of_its_best_confidence() -> None:
    seen = [s for s in seen_of(random_groups(3, groups=4, vocabulary=6)) if s.previous is not None]
    hits = np.concatenate(
        [copied_tokens(s.previous, s.transition.observation_ids) for s in seen if s.previous is not None]
    )
    missed = np.concatenate([s.transition.observation_ids for s in seen])[~hits]
    shares = {token: float((missed == token).mean()) for token in set(missed.tolist())}

    def ce(confidence: float) -> float:
        return -(
            hits.sum() * math.log(confidence)
            + sum(math.log((1 - confidence) * shares[t]) for t in missed.tolist())
        ) / len(hits)

    copier = Copier(seen)
    found = sum(map(copier.nats, seen)) / len(hits)
    assert found == pytest.approx(ce(hits.mean()))
    assert all(found < ce(c) for c in (0.5 * hits.mean(), min(0.99, 1.5 * hits.mean())))


def seen_of(groups: list[Group]) -> list[Seen]:
    found = []
    for group in groups:
        for e in group.episodes:
            for before, t in zip([None, *e.transitions], e.transitions, strict=False):
                if len(t.observation_ids):
                    found.append(
                        Seen(
                            t,
                            None if before is None else before.observation_ids,
                            np.float32([-1.0]),
                            group.task_id,
                            group.task_type,
                            e.success,
                        )
                    )
    return found


def test_a_run_is_asked_about_its_own_play_and_that_of_its_start(tmp_path: Path) -> None:
    """The same transitions for arms that began alike: only the policy that answers differs."""
    foreign = {}
    for arm, enabled in (("vanilla", False), ("paw", True)):
        chosen = recipe()
        chosen = chosen.model_copy(
            update={"name": arm, "wm": chosen.wm.model_copy(update={"enabled": enabled})}
        )
        train(chosen, tmp_path / arm, command="test")
        [stored] = [evaluate_path(str(tmp_path / arm), panel="valid_seen:2@0")] and read_evaluations(
            tmp_path / arm
        )
        assert (
            stored.update == 1
            and stored.protocol == "4 steps, compact prompt, history 2, 512 + 12 tokens, seeds by task"
        )
        foreign[arm] = {p.split: p for p in stored.predictions if p.source == "foreign"}
        assert {p.source for p in stored.predictions} == {"own", "foreign"}
    vanilla, paw = (foreign[arm]["all"] for arm in ("vanilla", "paw"))
    assert (vanilla.transitions, vanilla.tokens, vanilla.copy_ce) == (
        paw.transitions,
        paw.tokens,
        paw.copy_ce,
    )
    assert paw.ce < vanilla.ce
    splits = [p for name, p in foreign["paw"].items() if name in ("success", "failure")]
    assert sum(p.transitions for p in splits) == paw.transitions and sum(
        p.ce * p.tokens for p in splits
    ) == pytest.approx(paw.ce * paw.tokens)


def test_a_recipe_file_stands_for_the_policy_that_its_runs_begin_with(
    tmp_path: Path, one_worker: Evaluation
) -> None:
    path = tmp_path / "recipe-of-a-study.yaml"
    path.write_text(dump_recipe(recipe()))
    found = evaluate_path(str(path), panel=PANEL, repeats=2, out=tmp_path / "start")
    assert found.episodes == one_worker.result.episodes and found.protocol == one_worker.result.protocol
    assert {p.source for p in found.predictions} == {"own"} and read_evaluations(tmp_path / "start") == [
        found
    ]


def test_rules_tell_apart_what_must_not_be_compared(tmp_path: Path) -> None:
    """By the two protocols ALFWorld has the same steps, history and lengths: the prompt's words and what is
    valid are other rules all the same."""
    ours, own = load_recipe(protocol_recipe("alfworld", "ours")), tmp_path / "mine.j2"
    assert rules(ours) == "50 steps, paper prompt, history 2, 2048 + 512 tokens, seeds by task"
    assert (
        rules(load_recipe(protocol_recipe("alfworld", "reference")))
        == f"{rules(ours)}, template reference, valid by format"
    )
    assert (
        rules(load_recipe(protocol_recipe("alfworld", "ours"), [f"env.prompt_template={own}"]))
        == f"{rules(ours)}, template mine.j2"
    )
