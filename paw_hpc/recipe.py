"""Typed, strict, composable configuration: one YAML file with an optional `base:`, overridden by dotted paths.

Every key is declared here with its unit and meaning. Unknown keys, wrong types and impossible combinations are refused at load, with the key's path
and what would be right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, ValidationInfo, field_validator, model_validator
from yaml import YAMLError

from paw_hpc.errors import RecipeError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
TaskType = Literal[
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
]

QuestionSet = Literal["nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"]
QUESTION_SETS: tuple[QuestionSet, ...] = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
IN_DOMAIN_SETS: tuple[QuestionSet, ...] = ("nq", "hotpotqa")
"""The sets that the paper trains on; the other five are out of domain."""

BenchmarkName = Literal["alfworld", "webshop", "search"]
PANELS: dict[str, tuple[str, ...]] = {
    "alfworld": ("valid_seen", "valid_unseen", "valid_train"),
    "webshop": ("test", "train"),
    "search": ("test", "in_domain", "out_of_domain", *QUESTION_SETS),
}
"""What each benchmark's policies are judged on; the first is the default of `eval.panel`."""
_PART = re.compile(r"(?::(?P<count>[1-9]\d*)@(?P<seed>\d+))?")


def split_panel_name(name: str, benchmark: str = "alfworld") -> tuple[str, int | None, int]:
    """`valid_seen:40@0` -> (split, number of tasks or None for all, seed). Raises ValueError for what is no panel of this benchmark."""
    known = PANELS[benchmark]
    split, colon, part = name.partition(":")
    match = _PART.fullmatch(colon + part)
    if split not in known or match is None:
        raise ValueError(f"no such panel; one of {', '.join(known)}, or PANEL:N@SEED such as {known[0]}:40@0")
    return split, int(match["count"]) if match["count"] else None, int(match["seed"] or 0)


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are frozen, defaults are checked too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_value(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads off and no as false, and false would pass for the number 0: `gigpo_similarity: off` would call all states the same.
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("not a switch (on, off, yes, no, true, false); null turns off what can be turned off")
        return value


class WebshopSection(Section):
    """What is WebShop's own (env.name: webshop)."""

    catalogue: Literal["auto", "small", "full", "generated"] = "auto"
    """small: the 1000-product set; full: all 1.18M products; generated: a synthetic catalogue in the same schema; auto: the largest at hand."""
    goals: Literal["synthetic", "human"] = "synthetic"
    """Instructions made from attributes and options, or those that people wrote."""
    tagger: Literal["auto", "spacy", "textblob"] = "auto"
    """Finds the nouns of a title for the reward. auto: spaCy with an English model where both are installed, else TextBlob; the run says which."""
    num_products: PositiveInt | None = None
    """Cut the catalogue after this many products; none: all of it."""


class SearchSection(Section):
    """What is search QA's own (env.name: search)."""

    data: Literal["auto", "official", "mini", "generated"] = "auto"
    """official: the seven sets and wiki-18; mini: 4,359 real questions over 20,201 real passages; generated: a made-up world; auto: the first one
    that is at hand, and the run says which."""
    train_sets: Annotated[tuple[QuestionSet, ...], Field(min_length=1)] = IN_DOMAIN_SETS
    retriever: Literal["bm25", "dense", "http"] = "bm25"
    """bm25 and dense: in this process, from `index`; http: a server at `url` (see `paw data search serve`)."""
    index: str | None = None
    """Folder made by `paw data search build`; none: BM25 over the corpus of `data`, built on first use where it is small."""
    url: str | None = None
    """Address of a server that answers POST /retrieve, for example http://node7:8000; none: the one that the job starts (cluster.retriever_node)."""
    topk: PositiveInt = 3
    """Passages that a search returns."""
    passage_words: PositiveInt | None = None
    """Show only this many words of a passage; none: all of it."""
    max_batch: PositiveInt = 256
    """Queries that the retriever is asked at once."""
    timeout_s: PositiveFloat = 20.0
    """http: longest wait for one answer. Tries are repeated with growing waits until env.step_timeout_s has passed; then the episode failed by the
    environment."""

    @model_validator(mode="after")
    def _reachable(self) -> SearchSection:
        if self.url is not None and self.retriever != "http":
            raise ValueError("url: give it with retriever=http, and only then")
        return self


class EnvSection(Section):
    """The benchmark and its protocol (paper, App. A.1)."""

    name: BenchmarkName = "alfworld"
    games: Literal["auto", "official", "generated"] = "auto"
    """ALFWorld. auto: the official games where they are at hand, else generated ones; the run says which."""
    task_types: Annotated[tuple[TaskType, ...], Field(min_length=1)] = TASK_TYPES  # type: ignore[assignment]
    """ALFWorld."""
    webshop: WebshopSection = WebshopSection()
    search: SearchSection = SearchSection()
    train_games: PositiveInt | None = None
    """Use only this many training tasks (a seeded choice over the sorted list); none: all of them."""
    max_steps: PositiveInt = 50
    history: Annotated[int, Field(ge=0)] = 2
    """Earlier (observation, action) pairs in the prompt."""
    prompt: Literal["paper", "compact"] = "paper"
    """paper: the full instructions with <think> and <action>; compact: a short form for tiny models from scratch, the answer is the bare command."""
    success_reward: float = 10.0
    """R_max of eq. 10; failure is worth 0."""
    invalid_penalty: NonNegative = 0.1
    """Subtracted from the reward of a step whose action was malformed or not admissible; lambda never sees it."""
    workers: PositiveInt = 2
    """ALFWorld: processes that load games; each episode then lives in a fork of its own."""
    step_timeout_s: PositiveFloat = 120.0

    @model_validator(mode="after")
    def _own_keys(self) -> EnvSection:
        owners = {"games": "alfworld", "task_types": "alfworld", "webshop": "webshop", "search": "search"}
        for key, owner in owners.items():
            if self.name != owner and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: a key of {owner}, and name is {self.name}; leave it out")
        return self


class TinyModel(Section):
    """A Qwen2-architecture model from scratch, for machines without pretrained weights."""

    hidden_size: PositiveInt = 160
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    intermediate_size: PositiveInt = 384
    tie_embeddings: bool = True


class ModelSection(Section):
    """Where the policy starts from."""

    path: str | None = None
    """A Hugging Face folder or hub name; `warm-start` is the small policy that ships with the package."""
    tiny: TinyModel | None = None
    """From scratch instead of `path` (needs `tokenizer`)."""
    tokenizer: str | None = None
    """Tokenizer folder; default: the one in `path`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    head_chunk_rows: PositiveInt = 2048
    """Rows per chunk of the LM head: at most head_chunk_rows x V logits exist at once."""


class FleetSection(Section):
    """The SGLang servers that play episodes (`rollout.engine: sglang`). It changes what a rollout costs, not what it means."""

    servers: PositiveInt = 1
    """How many servers the run starts (and ends)."""
    addresses: tuple[str, ...] = ()
    """Use these servers instead, such as http://node7:30000; somebody else starts and ends them."""
    hosts: tuple[str, ...] = ()
    """Nodes of the allocation on which srun starts the servers, in turn; `allocation` stands for all of its nodes. Empty: this machine."""
    python: str = ".venv-sglang/bin/python"
    """Interpreter of the environment that SGLang is installed in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel: PositiveInt = 1
    memory_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8
    """Share of a GPU's memory for weights and KV cache."""
    cache_tokens: PositiveInt | None = None
    """Tokens in a server's KV cache; none: what memory_fraction leaves on a GPU, 64 of the longest requests on a CPU."""
    threads: PositiveInt = 1
    """Threads of a server on a CPU."""
    deterministic: bool = False
    """SGLang's deterministic inference: each turn's own seed is obeyed (needs one of its GPU attention backends)."""
    colocated: bool = False
    """Servers share the trainer's GPUs: their memory is released while it trains."""
    arguments: tuple[str, ...] = ()
    """Further arguments of sglang.launch_server, such as --attention-backend=fa3."""
    routing: Literal["least_loaded", "prefix"] = "least_loaded"
    """Which server plays a turn. prefix: the one that played the episode's last turn, whose cache holds the prompt's beginning, unless it has far
    more to do than the others."""
    concurrency: PositiveInt = 256
    """Turns that one server is asked for at once; further ones wait here."""
    start_timeout_s: PositiveFloat = 600.0
    """From the start of a server until it is healthy."""
    health_every_s: PositiveFloat = 10.0
    health_timeout_s: PositiveFloat = 60.0
    """A server that does not answer for this long is stuck: it is ended and started anew."""
    request_timeout_s: PositiveFloat = 1800.0
    """Longest wait for one turn."""
    max_restarts: Annotated[int, Field(ge=0)] = 5
    """Of one server in a row, each within start_timeout_s of its being healthy; then it is given up."""


class PublishSection(Section):
    """How new weights reach the servers."""

    path: Literal["disk", "broadcast", "tensor"] = "disk"
    """disk: a folder that trainer and servers see; broadcast: a process group (NCCL between GPUs, else gloo); tensor: shared memory (CUDA IPC between
    GPUs) of a server on the same machine."""
    bucket_mib: PositiveInt = 1024
    """Tensors travel in buckets; this much memory beyond the model is used at most (unless one tensor is larger), gathering from the trainer's
    processes included."""
    timeout_s: PositiveFloat = 600.0
    """Of one publication to all servers."""
    sampled_tensors: PositiveInt | Literal["all"] = 8
    """Tensors whose checksums are compared on every server after each publication, other ones every time; or all, which on a CPU takes longer than
    sending them."""


class RolloutSection(Section):
    """How groups of episodes are played."""

    engine: Literal["local", "sglang"] = "local"
    """local: in the trainer's process, with its live weights; sglang: servers (sections `fleet` and `publish`)."""
    fleet: FleetSection = FleetSection()
    publish: PublishSection = PublishSection()
    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """0: every episode is played with the weights that it trains (the paper's setting). 1: the next update's episodes are played while this one is
    trained; weights change under their feet, and algorithm.truncated_importance corrects for that."""
    max_logprob_gap: PositiveFloat | None = None
    """Stop the run when the mean of |trainer's log-prob - engine's log-prob| over an update's action tokens exceeds this (nats); none: never."""
    groups: PositiveInt = 16
    group_size: PositiveInt = 8
    temperature: PositiveFloat = 1.0
    max_prompt_tokens: PositiveInt = 2048
    max_response_tokens: PositiveInt = 512
    stop: tuple[str, ...] = ()
    """Generation also ends when one of these strings has been produced (it is kept in the response)."""
    batching: Literal["deterministic", "eager"] = "deterministic"
    """deterministic: the composition of each generation batch depends on the episodes alone, so a run repeats bit for bit on any number of workers;
    eager: whatever waits is generated at once."""
    max_batch: PositiveInt = 128
    """Requests that the in-process engine generates together (bounds the KV cache)."""


class AlgorithmSection(Section):
    """The RL loss."""

    name: Literal["grpo", "gigpo", "rloo", "ppo"] = "grpo"
    normalize_std: bool = True
    """Divide group-relative advantages by the group's standard deviation."""
    penalty: Literal["advantage", "after_normalization"] = "advantage"
    """Where the invalid-action penalty enters. advantage: part of the return that is normalized (the paper's form). after_normalization: added to the
    normalized advantage, so that a group of failures does not turn a penalty of 0.1 into a signal of full size."""
    gigpo_omega: NonNegative = 1.0
    gigpo_similarity: Fraction | None = None
    """Group states whose keys are at least this similar (difflib ratio) instead of equal ones."""
    gamma: Fraction = 0.95
    """Discount: step returns of GiGPO, and GAE over the steps of an episode for PPO."""
    gae_lambda: Fraction = 0.95
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    dual_clip: PositiveFloat | None = 3.0
    kl_coefficient: NonNegative = 0.01
    kl_estimator: Literal["k1", "k2", "low_variance"] = "low_variance"
    entropy_bonus: NonNegative = 0.0
    aggregation: Literal["token", "transition", "episode"] = "token"
    """What the RL loss averages over, globally in the update: all action tokens; token means of transitions; token means of episodes."""
    truncated_importance: PositiveFloat | None = None
    """Truncated importance sampling: weight min(exp(old_logp - behaviour_logp), this); none: off."""
    old_logp: Literal["recompute", "rollout"] = "recompute"
    """recompute: one no-grad pass of the trainer (also gives entropies). rollout: what the engine reported (in-process engine only; entropies
    too)."""
    value_clip: PositiveFloat = 0.2
    value_coefficient: NonNegative = 1.0


class WorldModelSection(Section):
    """The world-model loss (paper, section 3; arms and controls of its section 4 are values of these keys)."""

    enabled: bool = True
    loss: Literal["clipped_mae", "mae", "cross_entropy"] = "clipped_mae"
    rho: Fraction = 0.2
    """Clipped MAE: tokens whose probability is already above rho carry no loss (eq. 9)."""
    selection: Literal["entropy", "random"] = "entropy"
    alpha: Fraction = 0.75
    """Share of the update's transitions that are selected (eq. 4); 1 selects all."""
    entropy: Literal["full", "sampled"] = "full"
    """full: entropy of the token distributions; sampled: the literal -q log q of the sampled token."""
    coefficient: Literal["reward_adaptive", "constant"] = "reward_adaptive"
    scale: NonNegative = 1.0
    """Multiplies lambda_g; with `coefficient: constant` it is the coefficient itself."""
    final_scale: NonNegative | None = None
    """If set, `scale` falls along a cosine to this value over the run (weight decay of the world-model loss)."""
    target: Literal["true", "shuffled"] = "true"
    """shuffled: the control. Each selected transition is given the observation of another one of the update (same token budget)."""
    every: PositiveInt = 1
    """Use the world-model loss in every k-th update only."""
    max_observation_tokens: PositiveInt = 256


class OptimizerSection(Section):
    """AdamW and how an update is cut into steps."""

    lr: PositiveFloat = 1e-6
    critic_lr: PositiveFloat = 1e-5
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegative = 0.01
    warmup_updates: Annotated[int, Field(ge=0)] = 0
    clip_grad: PositiveFloat = 1.0
    epochs: PositiveInt = 1
    mini_batch: PositiveInt | None = None
    """Transitions per optimizer step; none: the whole update."""
    max_tokens_per_micro_batch: PositiveInt = 16384


class PolicySection(Section):
    """What trains the policy."""

    backend: Literal["huggingface", "megatron"] = "huggingface"
    """huggingface: one process, CPU or one GPU; megatron: many processes, laid out by the section `megatron`."""


class MegatronSection(Section):
    """How processes share the model (`policy.backend: megatron`). It changes what an update costs, not what it computes."""

    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    virtual_pipeline: PositiveInt | None = None
    """Model chunks per pipeline rank (interleaved schedule); none: one."""
    context_parallel: PositiveInt = 1
    """Ranks that share the tokens of a sample. Only 1 is supported."""
    data_parallel: PositiveInt | None = None
    """Replicas; none: as many as the started processes make up, and one where `paw train` starts the processes itself."""
    sequence_parallel: bool = False
    """Split norms and residuals over the tensor-parallel ranks, too."""
    distributed_optimizer: bool = True
    """Shard optimizer states over the data-parallel ranks."""
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: those of attention, or of whole layers."""
    recompute_layers: PositiveInt = 1
    """Layers per recomputed block (`recompute: full`)."""
    layers: Literal["auto", "local", "transformer_engine"] = "auto"
    """Whose layers: auto takes Transformer Engine's where it is installed, else Megatron-core's own with PyTorch's attention."""
    reference_on_cpu: bool = True
    """Keep the reference policy in CPU memory between uses."""
    timeout_s: PositiveFloat = 1800.0
    """A collective that waits longer than this ends the run."""


class ContainerSection(Section):
    """The image that a launched job's processes run in (`cluster.container`). None: the environment that `paw launch` was started from."""

    image: str
    """pyxis: what --container-image takes (a .sqsh file, docker://...); apptainer: a .sif file. All nodes must reach it."""
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    mounts: tuple[Annotated[str, Field(pattern=r"^[^:,]+(:[^:,]+){0,2}$")], ...] = ()
    """HOST:CONTAINER[:FLAGS]; the run directory and the working directory are always mounted where they are."""
    python: str = "/opt/paw/.venv/bin/python"
    """Interpreter inside the image (see containers/)."""
    arguments: tuple[str, ...] = ()
    """Further arguments of srun (pyxis) or of `apptainer exec`."""


class ClusterSection(Section):
    """Where and how `paw launch` runs a recipe. It changes where a run computes, not what. Keys may also stand in ~/.config/paw/cluster.yaml, which
    wins over the recipe, and on the command line, which wins over both."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """Nodes that the job must not get, as Slurm writes them: node[3-5]."""
    time_min: PositiveInt = 720
    """Time limit of one job, in minutes. Longer runs requeue themselves and go on."""
    warn_s: PositiveInt = 300
    """How long before the time limit the job is told to stop: one update and one checkpoint must fit."""
    trainer_nodes: PositiveInt = 1
    rollout_nodes: Annotated[int, Field(ge=0)] = 0
    """Nodes that only serve (rollout.engine: sglang). 0: servers run on the trainer's nodes."""
    retriever_node: bool = False
    """One more node, which serves search QA's retrieval (env.search.retriever: http)."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """0: the nodes are used as CPU nodes."""
    gpu: Literal["A100-40", "A100", "H100", "H200", "B200", "L40S"] = "H100"
    """What `paw plan` computes with."""
    trainer_gpus: PositiveInt | None = None
    """One node for both roles: this many GPUs train, the others serve. None: all of a trainer node's GPUs train."""
    processes_per_node: PositiveInt | None = None
    """Trainer processes on a node; none: one per training GPU, or one on a CPU node."""
    servers_per_node: PositiveInt | None = None
    """Servers on a rollout node; none: as many as its GPUs allow (rollout.fleet.tensor_parallel each), or one on a CPU node."""
    cpus_per_node: PositiveInt = 8
    mem_gb_per_node: Annotated[int, Field(ge=0)] | None = None
    """0: all of the node's memory; none: the partition's default."""
    exclusive: bool = False
    attempts: PositiveInt = 3
    """Attempts in a row that may end without a new checkpoint before the job gives up."""
    setup: tuple[str, ...] = ()
    """Shell lines that the batch script runs first, such as `module load cuda`; all processes inherit the environment."""
    environment: dict[str, str] = {}
    """Further environment variables of all processes."""
    interface: str | None = None
    """Network interface of gloo and NCCL; none: the one that reaches the other nodes."""
    sbatch: dict[str, str | bool | int] = {}
    """Further #SBATCH flags, by their long names: {reservation: friday, comment: paw}."""
    srun: tuple[str, ...] = ()
    """Further arguments of every srun."""
    container: ContainerSection | None = None

    @field_validator("sbatch")
    @classmethod
    def _free_flags(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in _OWN_FLAGS:
                raise ValueError(f"{name}: the launcher sets this flag{_OWN_FLAGS[name]}")
        return value

    @model_validator(mode="after")
    def _layout(self) -> ClusterSection:
        if self.warn_s >= self.time_min * 60:
            raise ValueError(f"warn_s: {self.warn_s} s before the end of a job of {self.time_min} minutes is before its beginning; lower it")
        if self.trainer_gpus is not None and self.trainer_gpus > self.gpus_per_node:
            raise ValueError(f"trainer_gpus: {self.trainer_gpus} of a node's {self.gpus_per_node} GPUs (gpus_per_node)")
        return self


_OWN_FLAGS = {
    "nodes": "; set trainer_nodes and rollout_nodes",
    "ntasks": "",
    "ntasks-per-node": "",
    "gpus-per-node": "; set gpus_per_node",
    "cpus-per-task": "; set cpus_per_node",
    "mem": "; set mem_gb_per_node",
    "time": "; set time_min",
    "signal": "; set warn_s",
    "requeue": "",
    "no-requeue": "; set attempts: 1",
    "open-mode": "",
    "output": "",
    "error": "",
    "array": "; see `paw launch --array`",
    "partition": "; set cluster.partition",
    "account": "; set cluster.account",
    "qos": "; set cluster.qos",
    "constraint": "; set cluster.constraint",
    "exclude": "; set cluster.exclude",
    "exclusive": "; set cluster.exclusive",
}
"""sbatch's flags that have keys of their own, or none, and which."""


class EvalSection(Section):
    """Evaluation while training, on a fixed panel."""

    panel: str = "valid_seen"
    """A panel of the benchmark (see PANELS; default: its first), or PANEL:N@SEED for a seeded sub-panel of N tasks."""
    every: Annotated[int, Field(ge=0)] = 0
    """Updates between evaluations; 0: never while training."""
    temperature: NonNegative = 0.4
    repeats: PositiveInt = 1


class CheckpointSection(Section):
    every: PositiveInt = 10
    """Updates between checkpoints; one is also written at the end and on a signal."""
    keep: PositiveInt = 2
    background: bool = True
    """Megatron: write while training goes on; the next checkpoint waits for it, and so does the end of the run."""


class WarmStartSection(Section):
    """How `paw warm-start` clones a small policy from expert play (see warmstart.py); training never reads it."""

    games: PositiveInt = 1600
    """Training games (a seeded choice, in proportion to their task types)."""
    hints: tuple[Fraction, ...] = (0.15, 0.3, 0.5, 0.75)
    """One episode per game and value: the probability that the expert searches where the walkthrough goes, else in an unvisited place."""
    detour: Fraction = 0.1
    """In every second episode, the share of steps in which a random admissible command is played; the expert's own command is what is cloned."""
    habit: Fraction = 0.0
    """Share of the expert's steps at which what is cloned is a bad habit: it looks about (ALFWorld), buys whatever is chosen (WebShop), or guesses
    before it has read (search). That costs success in every task alike: something for RL to unlearn which is not particular to one."""
    fumble: Fraction = 0.2
    """Share of states before which a command that is not admissible is inserted into the history: it changes nothing, and the expert goes on. A
    policy that never saw one repeats it for ever."""
    max_steps: PositiveInt = 40
    steps: PositiveInt = 2500
    """Optimizer steps."""
    batch_tokens: PositiveInt = 8192
    lr: PositiveFloat = 1e-3
    prompt_weight: NonNegative = 0.1
    """Weight of the language-model loss on prompt tokens beside the loss on the answer; a stand-in for pretraining."""


class Recipe(Section):
    """A whole experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")] = "run"
    seed: Annotated[int, Field(ge=0)] = 0
    updates: PositiveInt = 150
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
    warm_start: WarmStartSection = WarmStartSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="before")
    @classmethod
    def _default_panel(cls, data: Any) -> Any:
        env, chosen = (data.get("env"), data.get("eval")) if isinstance(data, dict) else (None, None)
        name = env.get("name") if isinstance(env, dict) else getattr(env, "name", None)
        if name in PANELS and (chosen is None or (isinstance(chosen, dict) and "panel" not in chosen)):
            return {**data, "eval": {**(chosen or {}), "panel": PANELS[name][0]}}
        return data

    @property
    def processes(self) -> int:
        """How many processes `paw train` starts for the policy where nobody else did."""
        m = self.megatron
        return m.tensor_parallel * m.pipeline_parallel * m.context_parallel * (m.data_parallel or 1) if self.policy.backend == "megatron" else 1

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        a, r, m = self.algorithm, self.rollout, self.model
        try:
            split_panel_name(self.eval.panel, self.env.name)
        except ValueError as error:
            raise ValueError(f"eval.panel: {error}, got {self.eval.panel!r}") from None
        if self.env.search.retriever == "http" and self.env.search.url is None and not self.cluster.retriever_node:
            raise ValueError("env.search.url: retriever=http needs the server's address, or a job that starts one (cluster.retriever_node)")
        if r.group_size == 1 and a.name in ("grpo", "gigpo", "rloo"):
            raise ValueError(f"rollout.group_size: 1 leaves {a.name} without a baseline; use at least 2, or algorithm.name=ppo")
        if (m.path is None) == (m.tiny is None):
            raise ValueError("model: give exactly one of model.path (pretrained weights) and model.tiny (from scratch)")
        if m.tiny and m.tokenizer is None:
            raise ValueError("model.tokenizer: a model from scratch needs a tokenizer folder")
        if m.tiny and (m.tiny.hidden_size % m.tiny.heads or m.tiny.heads % m.tiny.kv_heads):
            raise ValueError("model.tiny: heads must divide hidden_size, and kv_heads must divide heads")
        if self.wm.enabled and self.wm.coefficient == "reward_adaptive" and self.env.success_reward <= 0:
            raise ValueError("env.success_reward: the reward-adaptive coefficient needs R_max > 0")
        if a.old_logp == "rollout" and r.engine != "local":
            raise ValueError("algorithm.old_logp: 'rollout' needs rollout.engine=local, whose log-probs are the trainer's own; use 'recompute'")
        if r.staleness and r.engine == "local":
            raise ValueError("rollout.staleness: 1 needs rollout.engine=sglang; the in-process engine plays with the very weights that are trained")
        if r.staleness and a.truncated_importance is None:
            raise ValueError("rollout.staleness: 1 needs algorithm.truncated_importance (for example 2.0) to correct for the older weights")
        if r.staleness and r.fleet.colocated:
            raise ValueError("rollout.fleet.colocated: servers that give up their memory while the trainer works cannot play meanwhile; use 0")
        if r.publish.path == "tensor" and any(h != "localhost" for h in r.fleet.hosts):
            raise ValueError("rollout.publish.path: tensor needs servers on the trainer's machine; leave rollout.fleet.hosts empty, or use broadcast")
        p = self.megatron
        if p.sequence_parallel and p.tensor_parallel == 1:
            raise ValueError("megatron.sequence_parallel: it splits over the tensor-parallel ranks, of which there is one; raise tensor_parallel")
        if p.virtual_pipeline is not None and p.pipeline_parallel == 1:
            raise ValueError("megatron.virtual_pipeline: it needs pipeline_parallel of at least 2")
        if p.overlap_param_gather and not (p.distributed_optimizer and p.overlap_grad_reduce):
            raise ValueError("megatron.overlap_param_gather: it needs distributed_optimizer and overlap_grad_reduce")
        if a.dual_clip is not None and a.dual_clip <= 1.0:
            raise ValueError(f"algorithm.dual_clip: {a.dual_clip} must exceed 1 (or be null)")
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, its chain of bases, and `key.path=value` overrides.

    Raises:
        RecipeError: unknown key, wrong type, impossible combination, unreadable file or circular base; one line, naming file and key.
    """
    chain, changes = _read_chain(Path(path), ()), _parse_overrides(overrides)
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(chain, changes), resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{path}: {' '.join(str(error).split())}") from None
    return parse_recipe(merged, where=str(path))


def parse_recipe(data: Any, where: str = "recipe") -> Recipe:
    """Validate a plain mapping. Raises RecipeError."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump(mode="json")))


def _read_chain(path: Path, seen: tuple[Path, ...]) -> Any:
    if path.resolve() in seen:
        raise RecipeError(f"{path}: its chain of `base:` leads back to itself")
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file") from None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, found {type(config).__name__}")
    base = config.pop("base", None)
    if base is None:
        return config
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base: expected the path of another recipe, got {base!r}")
    return OmegaConf.merge(_read_chain(path.parent / base, (*seen, path.resolve())), config)


def _parse_overrides(overrides: Sequence[str]) -> Any:
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise RecipeError(f"override '{item}': expected key.path=value, for example optimizer.lr=2e-6")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(f"overrides: {' '.join(str(error).split())}") from None


def _explain(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(_section_at(error["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean '{'.'.join([*map(str, error['loc'][:-1]), close[0]])}'?" if close else f"known keys here: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message}, got {error['input']!r}" if path else message


def _section_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for part in loc:
        annotation = section.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return section
