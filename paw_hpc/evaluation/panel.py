"""Whole fixed panels, k episodes per game, intervals over games."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from paw_hpc.build import Machinery, for_started_processes, processes_of
from paw_hpc.evaluation.diagnostics import Seen, observe, predictions
from paw_hpc.evaluation.episodes.folder import EpisodeFolder
from paw_hpc.evaluation.episodes.record import Place, Played, evaluation_rows
from paw_hpc.evaluation.noise import (
    SEARCH_RESULTS,
    TRANSITIONS,
    Bools,
    NoiseShares,
    noise_shares,
    noisy_tokens,
)
from paw_hpc.evaluation.referee import judged
from paw_hpc.evaluation.results import EvaluatedEpisode, EvaluationResult, Prediction, write_evaluation
from paw_hpc.evaluation.statistics import Interval, ratio_interval
from paw_hpc.experience import Episode, Floats, Group, Pool
from paw_hpc.policy.checkpoint_folder import checkpoints
from paw_hpc.recipe import Recipe
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.recipe.protocols import judged_by
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.system import distributed
from paw_hpc.system.errors import CheckpointError, UserError
from paw_hpc.system.storage import check_writable

RULES = ("env", "rollout", "algorithm", "wm", "optimizer", "updates")
"""Sections in which the recipe by which a run is judged may differ from that of its checkpoint: only the
model must be the same."""
FOREIGN_GAMES = 40
"""Games of a panel that the policy before training plays, once each, for the diagnostics on its play."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A result, and the experience behind it (for diagnostics on the same transitions)."""

    result: EvaluationResult
    groups: list[Group]
    steps: pa.Table | None = None
    """What is kept of it (episodes.schema.STEP), on the main rank; None: nothing (`episodes.evaluations`)."""


@dataclass(frozen=True, slots=True)
class ObservationCrossEntropy:
    """Mean cross-entropy of true next observations, nats per token, with its 95 % interval over games."""

    mean: float
    tokens: int
    interval: Interval


def evaluate(
    machinery: Machinery,
    recipe: Recipe,
    *,
    update: int,
    label: str,
    panel: str | None = None,
    temperature: float | None = None,
    repeats: int | None = None,
    observed: Sequence[Group] | None = None,
    foreign: Sequence[Group] | None = None,
    leave: Callable[[], bool] | None = None,
) -> Evaluation:
    """Play a panel with the current weights. Seeds come from (recipe.seed, task id, repeat) alone
    (`eval.seeds`), so arms, worker counts and panels that share tasks can be compared pairwise.

    Args:
        panel, temperature, repeats: default to the recipe's `eval` section.
        observed: measure the observation cross-entropy on these transitions (another policy's play of the
            panel, the same for all arms); none: on the policy's own play.
        foreign: measure the world-model diagnostics, on the policy's own play and on these transitions (may
            be empty); none: leave them out.
        leave: asked again and again while it is played; once true, on any rank, the evaluation is given up.

    Raises:
        UserError: the environments broke every episode, or no prompt fitted.
        EvaluationLeft: `leave` said so.
    """
    chosen = machinery.benchmark.panel(panel or recipe.eval.panel)
    temperature = recipe.eval.temperature if temperature is None else temperature
    repeats, start, groups = repeats or recipe.eval.repeats, time.perf_counter(), []
    entropies: dict[Place, Floats] = {}
    # As many games at once as the engine batches: the slices depend on the recipe alone, and so do the
    # numbers.
    slice_size = max(1, recipe.rollout.max_batch // repeats)
    for first in range(0, len(chosen.tasks), slice_size):
        part = chosen.tasks[first : first + slice_size]
        found, stats = machinery.play(
            part, repeats, 0, purpose="eval", temperature=temperature, first_group=first, leave=leave
        )
        groups += found
        entropies |= stats.entropies
    played = [e for g in groups for e in g.episodes]
    whole = [e for e in played if not e.failed_by_environment]
    if not whole:
        raise UserError(
            f"evaluation {label}: the environments failed in all {len(played)} episodes; see the messages "
            "above, or raise env.step_timeout_s"
        )
    if not any(e.transitions for e in whole):
        raise UserError(
            f"evaluation {label}: no first prompt of {len(whole)} episodes fits; raise "
            f"rollout.max_prompt_tokens={recipe.rollout.max_prompt_tokens}"
        )
    seconds = time.perf_counter() - start
    seen = observe(machinery, groups if observed is None else observed)
    prediction = _cross_entropy(seen)
    predicted: tuple[Prediction, ...] = ()
    own = seen if observed is None else []
    if foreign is not None:
        own = seen if observed is None else observe(machinery, groups)
        theirs = seen if foreign is observed else observe(machinery, foreign)
        predicted = predictions(machinery, "own", own) + predictions(machinery, "foreign", theirs)
    noise = (
        measure_noise(machinery, groups if observed is None else observed, recipe.wm.rho)
        if BENCHMARKS.find(recipe.env.name).noise
        else None
    )
    result = EvaluationResult.of_episodes(
        [_evaluated(e, repeats) for e in whole],
        label=label,
        panel=chosen.name,
        panel_checksum=chosen.checksum,
        temperature=temperature,
        update=update,
        seconds=seconds,
        observation_ce=prediction.mean if prediction else None,
        observation_tokens=prediction.tokens if prediction else None,
        observation_ce_interval=prediction.interval if prediction else None,
        environment_failures=len(played) - len(whole),
        noise=noise,
        predictions=predicted,
        protocol=rules(recipe),
        judged_by=judged_by(recipe, temperature),
    )
    if not (recipe.episodes.evaluations and distributed.is_main()):
        return Evaluation(result, groups)
    logp = {_place(s): s.logp for s in own}
    generated = {_place(s): s.predicted for s in own if s.predicted is not None}
    shown = Played(update, label, repeats, groups, entropies, logp, generated)
    return Evaluation(result, groups, evaluation_rows(shown, recipe, machinery.policy.tokenizer))


def write(run_directory: Path, evaluation: Evaluation, recipe: Recipe) -> Path:
    """The result and the episodes behind it, into a run directory (or a folder like one). Returns LABEL.json.

    Raises:
        StorageError: full disk.
        StaleAttempt: a later attempt writes this run.
    """
    if evaluation.steps is not None:
        folder = EpisodeFolder(run_directory, recipe.episodes.max_megabytes * 10**6)
        folder.write_evaluation(evaluation.result.update, evaluation.result.label, evaluation.steps)
    return write_evaluation(run_directory, evaluation.result)


def _place(seen: Seen) -> Place:
    return seen.transition.episode, seen.transition.step


def _evaluated(episode: Episode, repeats: int) -> EvaluatedEpisode:
    return EvaluatedEpisode(
        task_id=episode.task_id,
        task_type=episode.task_type,
        repeat=episode.index % repeats,
        seed=episode.seed,
        success=episode.success,
        score=episode.score,
        steps=len(episode.transitions),
        invalid=sum(not t.valid for t in episode.transitions),
        episode_return=episode.episode_return,
    )


def rules(recipe: Recipe) -> str:
    """What else decides how episodes of a panel go, for a reader. What is at its default is left out where it
    was not always a key."""
    env, rollout = recipe.env, recipe.rollout
    said = (
        f"{env.max_steps} steps, {env.prompt} prompt, history {env.history}, "
        f"{rollout.max_prompt_tokens} + {rollout.max_response_tokens} tokens"
    )
    if recipe.eval.seeds == "task":  # the rule before it was a key was the other one
        said += ", seeds by task"
    if env.prompt_template is not None:
        said += f", template {Path(env.prompt_template).name}"
    if env.validity != "admissible":
        said += f", valid by {env.validity}"
    return said


def observation_cross_entropy(
    machinery: Machinery, groups: Sequence[Group]
) -> ObservationCrossEntropy | None:
    """How well the policy predicts the next observations in these groups (its own play, or another policy's);
    None where there are none."""
    return _cross_entropy(observe(machinery, groups))


def _cross_entropy(seen: Sequence[Seen]) -> ObservationCrossEntropy | None:
    if not seen:
        return None
    nats, tokens = [s.nats for s in seen], [float(s.tokens) for s in seen]
    return ObservationCrossEntropy(
        sum(nats) / sum(tokens), int(sum(tokens)), ratio_interval(nats, tokens, [s.game for s in seen])
    )


def play_foreign(machinery: Machinery, recipe: Recipe, panel: str) -> list[Group]:
    """The current weights' play of up to FOREIGN_GAMES games, spread over the panel, once each as in
    training: transitions that all arms which began with these weights can be asked about."""
    tasks = machinery.benchmark.panel(panel).tasks
    chosen = tasks[:: max(1, len(tasks) // FOREIGN_GAMES)][:FOREIGN_GAMES]
    return machinery.play(chosen, 1, 0, purpose="foreign", temperature=recipe.rollout.temperature)[0]


def measure_noise(machinery: Machinery, groups: Sequence[Group], rho: float) -> NoiseShares | None:
    """Where the gradient of each world-model loss would go on the first pages of search results in these
    groups; None where there is none.

    A page whose cut or sampled ids are not those of its text tokenized again is left out: its tokens have no
    place in the text.
    """
    chat, noisy, chosen = machinery.chat, list[Bools](), list[Group]()
    for group in groups:
        kept = []
        for episode in (e for e in group.episodes if not e.failed_by_environment):
            pages = []
            for transition in episode.transitions:
                text = chat.decode(transition.observation_ids)
                placed = chat.offsets(text, transition.observation_ids) if SEARCH_RESULTS in text else None
                if placed is not None and len(noisy) < TRANSITIONS:
                    noisy.append(noisy_tokens(text, placed))
                    pages.append(transition)
            if pages:
                kept.append(dataclasses.replace(episode, transitions=pages))
        if kept:
            chosen.append(dataclasses.replace(group, episodes=kept))
    if not noisy:
        return None
    logp = machinery.policy.observation_logp(Pool.from_groups(chosen)).cpu().numpy()
    return noise_shares(np.split(logp, np.cumsum([len(page) for page in noisy])[:-1]), noisy, rho)


def evaluate_path(
    target: str,
    *,
    panel: str,
    repeats: int = 1,
    temperature: float | None = None,
    workers: int | None = None,
    out: Path | None = None,
    protocol: str | None = None,
    benchmark: str | None = None,
    overrides: Sequence[str] = (),
) -> EvaluationResult:
    """`paw eval`: a run directory (its newest whole checkpoint), a recipe file (the policy that its runs
    begin with), a folder with a model and its recipe.yaml, or, by a protocol's rules, any of these and any
    model (see `referee.judged`).

    World-model diagnostics are on its own play, and for a run also on that of the policy that it began with,
    before any training.

    The result is written to `out`, or to the run directory when the target is one.
    """
    case = judged(target, panel, protocol=protocol, benchmark=benchmark, overrides=overrides)
    run, recipe = case.run, case.recipe
    recipe = recipe.model_copy(
        update={"env": recipe.env.model_copy(update={"workers": workers or recipe.env.workers})}
    )
    recipe = for_started_processes(recipe)
    if run is not None and not checkpoints(run.checkpoints):
        raise CheckpointError(
            f"{target}: there is no checkpoint in {run.checkpoints}; to judge the policy that the run "
            f"begins with: paw eval {run.recipe_path}"
        )
    where = out or (None if run is None else run.path)
    if where is not None and distributed.is_main():
        check_writable(where / "evaluations")
    with processes_of(recipe), EventLoop() as runner, Machinery(recipe, runner) as machinery:
        foreign: list[Group] = []
        if run is not None:
            machinery.publisher.publish(version=0)
            foreign = play_foreign(machinery, recipe, panel)
        update = machinery.policy.resume(run.checkpoints, RULES) if run is not None else 0
        machinery.publisher.publish(version=update)
        named = "" if protocol is None else f"{protocol}-{recipe.env.name}-"
        warmth = recipe.eval.temperature if temperature is None else temperature
        label = f"{named}{panel}-update-{update:05d}-t{warmth:g}x{repeats}"
        found = evaluate(
            machinery,
            recipe,
            update=update,
            label=label,
            panel=panel,
            temperature=temperature,
            repeats=repeats,
            foreign=foreign,
        )
    if where is not None and distributed.is_main():
        write(where, found, recipe)
    return found.result
