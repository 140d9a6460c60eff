"""The doors of the package: what a recipe chooses by name, what each choice must bring, and how somebody else
brings one.

    door                        key                 brings
    ALGORITHMS                  algorithm.name      Algorithm: from rewards to advantages
    WORLD_MODEL_LOSSES          wm.loss             WorldModelLoss: the loss of an observation token
    BENCHMARKS                  env.name            Benchmark: tasks, environments, panels
    ENGINES                     rollout.engine      Engine: who samples responses, how weights get there
    LAUNCHERS                   paw launch          Launcher: scripts and jobs of a scheduler

Every choice of this package is an entry like any other. Another one is a module that calls
`ALGORITHMS.add("mine", Algorithm(...))`; a recipe names it in `plugins`, or an installed package in its entry
points (group `paw_hpc.algorithms`). Keys of its own stand in the `options` of the section that chooses it,
and are read by a `Section` that it brings. See docs/extending.md and examples/.

What is declared here is read on login nodes, too: an entry is light, and its functions import what they need
when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import GetJsonSchemaHandler, ValidationError
from pydantic_core import PydanticCustomError, core_schema

from paw_hpc.recipe.section import Section
from paw_hpc.system.registry import Registry

if TYPE_CHECKING:  # what the functions of an entry take and give; nothing of it is imported by a recipe
    import torch

Values = Literal["steps", "tokens"]
Options = TypeVar("Options", bound=Section)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """How rewards become advantages (`algorithm.name`). What is done with advantages (clipping, KL,
    aggregation) is keys of the section for all."""

    estimate: Callable[..., Any]
    """(pool, returns float64[N], invalid float64[N], scores, recipe) -> `paw_hpc.objective.credit.Estimate`.
    `returns` are those of the episodes with the penalties that belong to them (`algorithm.penalty`),
    `invalid` the penalty of each step."""
    values: Callable[[Any], Values | None] = field(default=lambda section: None)
    """Of the `algorithm` section: whether a critic is trained, with a value per step or per response
    token."""
    smallest_group: int = 1
    """Episodes of a task without which there is no baseline."""
    options: type[Section] | None = None


@dataclass(frozen=True, kw_only=True)
class WorldModelLoss:
    """The loss of an observation token (`wm.loss`)."""

    loss: Callable[[torch.Tensor, Any], torch.Tensor]
    """(logp float[R] of the true tokens, the `wm` section) -> float[R], unweighted, differentiable, without
    asking the device to wait."""
    options: type[Section] | None = None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Where an agent acts (`env.name`)."""

    make: Callable[[Any], Any]
    """The `env` section -> `paw_hpc.envs.base.Benchmark`; reads no data yet."""
    panels: tuple[str, ...]
    """What its policies are judged on; the first is the default of `eval.panel`."""
    variables: tuple[str, ...] = ()
    """What its prompt templates may name (`env.prompt_template`); empty: its prompts are not made by
    templates."""
    example: Callable[[Any], tuple[Any, Any, Sequence[Any]]] | None = None
    """The `env` section -> (a view, the first state, (action, state) pairs): a short made-up episode, for
    `paw data NAME prompt`."""
    lessons: Callable[[Any, Any], Any] | None = None
    """(recipe, console) -> `paw_hpc.envs.base.Lessons`: expert play for `paw warm-start`."""
    admits: Callable[[str, Any], bool] | None = None
    """(action, `paw_hpc.envs.base.EnvironmentState`) -> whether the action is well-formed and can be taken in
    this state, for callers that hand over actions rather than responses (`paw_hpc.envs`); none: where the
    state lists admissible actions, those alone."""
    noise: bool = False
    """Whether evaluations count what nothing could predict in its observations
    (`paw_hpc.evaluation.noise`)."""
    options: type[Section] | None = None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Who samples the responses (`rollout.engine`)."""

    make: Callable[..., Any]
    """(`paw_hpc.rollout.playing.Parts`) -> `paw_hpc.rollout.playing.Playing`: the engine of this process, or
    none, and what brings it new weights."""
    own_weights: bool = False
    """It samples with the trainer's own tensors: its log-probs are the trainer's, and nothing plays while the
    trainer works."""
    starts_servers: bool = False
    """It starts servers of its own (`rollout.fleet`), for which a layout has GPUs and nodes."""
    options: type[Section] | None = None


@dataclass(frozen=True, slots=True)
class JobState:
    """One job as its scheduler sees it now."""

    state: str
    """In the scheduler's word. Slurm's: PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, TIMEOUT,
    NODE_FAIL, PREEMPTED, ..."""
    nodes: str = ""
    reason: str = ""
    """Why it waits; empty where it does not."""
    alive: bool = True
    """It waits or runs."""


def _no_queue(*_: Any) -> Any:
    raise NotImplementedError("a launcher without a queue")


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Where runs go (`paw launch --executor NAME`): a scheduler, which takes a script into its queue, knows
    jobs' states and ends them; or a place without a queue, which runs them at once (`run`). A job runs
    `python -m paw_hpc.cluster.job RUN` (`paw_hpc.cluster.submit.JOB`), which begins or continues the run and
    ends with its status; what is asked of the nodes stands in the `cluster` section.

    Raises:
        TypeError: it has neither a queue nor `run`.
    """

    script: Callable[[Any], str]
    """(`paw_hpc.cluster.submit.Launchable`) -> the text of the job's script."""
    submit: Callable[[Any, Path], str] = _no_queue
    """(the same, the script's file) -> the job's id. Raises UserError with what the scheduler said."""
    states: Callable[[Iterable[str]], Mapping[str, JobState]] = _no_queue
    """Job ids -> those that the scheduler knows. Raises UserError where it does not answer; nobody is kept
    waiting for it."""
    cancel: Callable[[str], None] = _no_queue
    """End a job, gently: it is to save and stop."""
    run: Callable[[Any], int] | None = None
    """(`Launchable`) -> its exit status, once it has ended. None: there is a queue."""
    ready: Callable[[], None] = field(default=lambda: None)
    """Raises UserError where this machine cannot reach it, with what to do."""
    check: Callable[[Any], None] = field(default=lambda launch: None)
    """Raises RecipeError for a `Launchable` that the scheduler would refuse, or accept and never start."""
    array_script: Callable[[Sequence[Any], int | None, Path], str] | None = None
    """(`Launchable`s that ask for the same, at most so many at once, a folder for logs) -> the script of a
    job with a task for each, whose ids are JOB_0, JOB_1, ... None: it has no arrays."""
    several_nodes: bool = False
    """The job's nodes can be reached with srun. Without it a layout must fit one node."""

    def __post_init__(self) -> None:
        if self.run is None and _no_queue in (self.submit, self.states, self.cancel):
            raise TypeError("a launcher has submit, states and cancel, or it has run")


ALGORITHMS = Registry(
    Algorithm,
    "paw_hpc.algorithms",
    {name: f"paw_hpc.objective.algorithms:{name.upper()}" for name in ("grpo", "gigpo", "rloo", "ppo")},
)
WORLD_MODEL_LOSSES = Registry(
    WorldModelLoss,
    "paw_hpc.world_model_losses",
    {
        name: f"paw_hpc.objective.algorithms:{name.upper()}"
        for name in ("clipped_mae", "mae", "cross_entropy")
    },
)
BENCHMARKS = Registry(
    Benchmark,
    "paw_hpc.benchmarks",
    {name: f"paw_hpc.envs.{name}.entry:ENTRY" for name in ("alfworld", "webshop", "search")},
)
ENGINES = Registry(
    Engine,
    "paw_hpc.engines",
    {name: f"paw_hpc.rollout.entries:{name.upper()}" for name in ("local", "sglang")},
)
LAUNCHERS = Registry(
    Launcher,
    "paw_hpc.launchers",
    {name: f"paw_hpc.cluster.launchers:{name.upper()}" for name in ("slurm", "allocation", "local")},
)


@dataclass(frozen=True)
class Choice:
    """In the annotation of a key: its values are the names of a registry, at the time of reading."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, core_schema.str_schema(strict=True))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": list(self.registry.names()), "type": "string"}

    def _known(self, name: str) -> str:
        if name not in self.registry.names():
            raise PydanticCustomError(
                "choice", "Input should be {expected}", {"expected": self.registry.expected()}
            )
        return name


def check_options(registry: Registry[Any], name: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for keys under `options` that the entry of this name does not take, or not with these
    values."""
    if registry.is_own(name) and not options:
        return
    model = None if registry.is_own(name) else registry.find(name).options
    if model is not None:
        read_options(model, options)
    elif options:
        raise ValueError(f"options: '{name}' has none; leave them out")


def read_options(model: type[Options], options: Mapping[str, Any]) -> Options:
    """The options of an entry, as the section that it brings reads them. Raises ValueError: one line with
    what is wrong and what would be right."""
    from paw_hpc.recipe.loading import explain

    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise ValueError("; ".join(f"options.{explain(each, model)}" for each in error.errors())) from None
