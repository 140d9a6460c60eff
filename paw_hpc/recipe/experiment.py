"""A whole recipe: all its sections, and the combinations of their keys that are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveInt, model_validator

from paw_hpc.recipe.cluster import ClusterSection
from paw_hpc.recipe.doors import ALGORITHMS, BENCHMARKS
from paw_hpc.recipe.env import EnvSection, panels_of, split_panel_name
from paw_hpc.recipe.objective import AlgorithmSection, WorldModelSection
from paw_hpc.recipe.policy import (
    MegatronSection,
    ModelSection,
    OptimizerSection,
    PolicySection,
    WarmStartSection,
)
from paw_hpc.recipe.rollout import RolloutSection
from paw_hpc.recipe.section import NonNegative, Section
from paw_hpc.system.registry import load_plugin, plugin_path

ProtocolName = Literal["reference", "ours"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
"""The two set-ups, whole, that are shipped for every benchmark as recipes/BENCHMARK/PROTOCOL.yaml."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
"""Of runs and arms; also as a part of file names."""

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class EvalSection(Section):
    """Evaluation while training, on a fixed panel."""

    panel: str = "valid_seen"
    """A panel of the benchmark (`panels_of`; default: its first), or PANEL:N@SEED for a seeded sub-panel of N
    tasks."""
    every: Annotated[int, Field(ge=0)] = 0
    """Updates between evaluations; 0: never while training."""
    temperature: NonNegative = 0.4
    """Of sampling; 0 is greedy."""
    repeats: PositiveInt = 1
    """How often each task of the panel is played, each time with another seed."""
    seeds: Literal["task", "place"] = "task"
    """What names an episode's seed beside the run's and the repeat: the task's id, the same in every panel
    that has the task, or its place in the panel, as evaluations before version 0.2 had it."""


class CheckpointSection(Section):
    every: PositiveInt = 10
    """Updates between checkpoints; one is also written at the end and on a signal."""
    keep: PositiveInt = 2
    """Newest checkpoints that stay; older ones are removed."""
    background: bool = True
    """Megatron: write while training goes on; the next checkpoint waits for it, and so does the end of the
    run."""


class EpisodesSection(Section):
    """Episodes that are kept in the run directory, whole: what `paw view` and `paw episodes` show
    (docs/episodes.md)."""

    groups: Annotated[int, Field(ge=0)] = 2
    """So many groups of every update, a seeded choice; 0: none."""
    evaluations: bool = True
    """All episodes of every evaluation."""
    max_megabytes: PositiveInt = 1024
    """Of the folder, in 10^6 bytes. Beyond it the oldest updates are dropped, the first one after all others,
    and then the oldest evaluations."""


class Recipe(Section):
    """A whole experiment."""

    name: Annotated[str, Field(pattern=NAME)] = "run"
    """Names the run, its directory (`runs/NAME`) and its job."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Every draw of the run derives from it: tasks, sampling, heads, orders."""
    updates: PositiveInt = 150
    """How many updates the run has."""
    protocol: ProtocolName | None = None
    """The protocol that this recipe says it follows: a label, which changes nothing. `paw report` compares
    the keys with that protocol's."""
    plugins: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Python files, or modules, whose import brings algorithms, benchmarks and the like of somebody else (see
    docs/extending.md). Files are kept with their whole path: every node reads them there."""
    tracking: tuple[TrackerName, ...] = ("tensorboard",)
    """Who gets the metrics beside metrics.jsonl; all but TensorBoard are packages of their own (extras of the
    same names)."""
    threads: PositiveInt | None = None
    """Torch threads of the trainer; none: torch's own choice."""
    env: EnvSection = EnvSection()
    model: ModelSection = ModelSection()
    rollout: RolloutSection = RolloutSection()
    algorithm: AlgorithmSection = AlgorithmSection()
    wm: WorldModelSection = WorldModelSection()
    optimizer: OptimizerSection = OptimizerSection()
    policy: PolicySection = PolicySection()
    megatron: MegatronSection = MegatronSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    episodes: EpisodesSection = EpisodesSection()
    warm_start: WarmStartSection = WarmStartSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="before")
    @classmethod
    def _prepared(cls, data: Any) -> Any:
        """Plugins are imported first: what they bring may be named anywhere."""
        if isinstance(data, dict) and isinstance(plugins := data.get("plugins"), (list, tuple)):
            data = {
                **data,
                "plugins": [plugin_path(each) if isinstance(each, str) else each for each in plugins],
            }
            for each in data["plugins"]:
                if isinstance(each, str) and each:
                    load_plugin(each)
        return cls._default_panel(data)

    @classmethod
    def _default_panel(cls, data: Any) -> Any:
        env, chosen = (data.get("env"), data.get("eval")) if isinstance(data, dict) else (None, None)
        name = env.get("name") if isinstance(env, dict) else getattr(env, "name", None)
        if (
            isinstance(name, str)
            and name in BENCHMARKS.names()
            and (chosen is None or (isinstance(chosen, dict) and "panel" not in chosen))
        ):
            return {**data, "eval": {**(chosen or {}), "panel": panels_of(name)[0]}}
        return data

    @property
    def processes(self) -> int:
        """How many processes `paw train` starts for the policy where nobody else did."""
        m = self.megatron
        return (
            m.tensor_parallel * m.pipeline_parallel * m.context_parallel * (m.data_parallel or 1)
            if self.policy.backend == "megatron"
            else 1
        )

    @property
    def warmup_updates(self) -> int:
        """Updates over which the learning rate rises; 0: none."""
        # A share like 0.29 of 100 updates is 28.999999999999996 in floating point.
        return self.optimizer.warmup_updates or int(self.optimizer.warmup_share * self.updates + 1e-9)

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        a, r, m = self.algorithm, self.rollout, self.model
        try:
            split_panel_name(self.eval.panel, self.env.name)
        except ValueError as error:
            raise ValueError(f"eval.panel: {error}, got {self.eval.panel!r}") from None
        if (
            self.env.search.retriever == "http"
            and self.env.search.url is None
            and not self.cluster.retriever_node
        ):
            raise ValueError(
                "env.search.url: retriever=http needs the server's address, or a job that starts one "
                "(cluster.retriever_node)"
            )
        if r.group_size < (least := ALGORITHMS.find(a.name).smallest_group):
            raise ValueError(
                f"rollout.group_size: {r.group_size} leaves {a.name} without a baseline; use at least "
                f"{least}, or algorithm.name=ppo"
            )
        if (m.path is None) == (m.tiny is None):
            raise ValueError(
                "model: give exactly one of model.path (pretrained weights) and model.tiny (from scratch)"
            )
        if m.tiny and m.tokenizer is None:
            raise ValueError("model.tokenizer: a model from scratch needs a tokenizer folder")
        if m.tiny and (m.tiny.hidden_size % m.tiny.heads or m.tiny.heads % m.tiny.kv_heads):
            raise ValueError("model.tiny: heads must divide hidden_size, and kv_heads must divide heads")
        if self.wm.enabled and self.wm.coefficient == "reward_adaptive" and self.env.success_reward <= 0:
            raise ValueError("env.success_reward: the reward-adaptive coefficient needs R_max > 0")
        if a.old_logp == "rollout" and not r.own_weights:
            raise ValueError(
                "algorithm.old_logp: 'rollout' needs rollout.engine=local, whose log-probs are the "
                "trainer's own; use 'recompute'"
            )
        if r.staleness and r.own_weights:
            raise ValueError(
                "rollout.staleness: 1 needs rollout.engine=sglang; the in-process engine plays with the "
                "very weights that are trained"
            )
        if r.staleness and a.truncated_importance is None:
            raise ValueError(
                "rollout.staleness: 1 needs algorithm.truncated_importance (for example 2.0) to correct "
                "for the older weights"
            )
        if r.staleness and r.fleet.colocated:
            raise ValueError(
                "rollout.fleet.colocated: servers that give up their memory while the trainer works cannot "
                "play meanwhile; use 0"
            )
        if r.publish.path == "tensor" and any(h != "localhost" for h in r.fleet.hosts):
            raise ValueError(
                "rollout.publish.path: tensor needs servers on the trainer's machine; leave "
                "rollout.fleet.hosts empty, or use broadcast"
            )
        p = self.megatron
        if p.sequence_parallel and p.tensor_parallel == 1:
            raise ValueError(
                "megatron.sequence_parallel: it splits over the tensor-parallel ranks, of which there is "
                "one; raise tensor_parallel"
            )
        if p.virtual_pipeline is not None and p.pipeline_parallel == 1:
            raise ValueError("megatron.virtual_pipeline: it needs pipeline_parallel of at least 2")
        if p.overlap_param_gather and not (p.distributed_optimizer and p.overlap_grad_reduce):
            raise ValueError(
                "megatron.overlap_param_gather: it needs distributed_optimizer and overlap_grad_reduce"
            )
        if self.optimizer.warmup_updates and self.optimizer.warmup_share:
            raise ValueError(
                "optimizer.warmup_share: the warm-up is given twice; set warmup_updates or warmup_share to 0"
            )
        if a.dual_clip is not None and a.dual_clip <= 1.0:
            raise ValueError(f"algorithm.dual_clip: {a.dual_clip} must exceed 1 (or be null)")
        return self
