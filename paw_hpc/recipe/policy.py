"""The policy: where it starts from, and what trains it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from paw_hpc.recipe.section import Fraction, NonNegative, Section
from paw_hpc.system.data_paths import cache_root

Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
_SHIPPED = Path(__file__).resolve().parents[1] / "policy" / "shipped"
SHIPPED_POLICIES = {
    "warm-start": _SHIPPED / "warm_start",
    "warm-start-generated": _SHIPPED / "warm_start_generated",
}
"""`model.path` of the small policies that ship with the package, and their folders: cloned on official
ALFWorld games, and then on generated ones."""
FETCHED_POLICIES = ("smollm2",)
"""`model.path` of the pretrained models that `paw data model NAME` brings into the cache."""


def policy_folder(named: str) -> Path | None:
    """The folder, there or not, of a policy that has a name of its own here; None for anything else."""
    return cache_root() / "models" / named if named in FETCHED_POLICIES else SHIPPED_POLICIES.get(named)


class TinyModel(Section):
    """A Qwen2-architecture model from scratch, for machines without pretrained weights."""

    hidden_size: PositiveInt = 160
    """Width of a token's state."""
    layers: PositiveInt = 4
    """Transformer layers."""
    heads: PositiveInt = 4
    """Attention heads; they divide hidden_size."""
    kv_heads: PositiveInt = 2
    """Heads of keys and values; they divide `heads`."""
    intermediate_size: PositiveInt = 384
    """Width of the feed-forward layers."""
    tie_embeddings: bool = True
    """One matrix for embeddings and head."""


class ModelSection(Section):
    """Where the policy starts from."""

    path: str | None = None
    """A Hugging Face folder or hub name; `warm-start` and `warm-start-generated` are small policies that ship
    with the package; `smollm2` is the pretrained SmolLM2-135M-Instruct, once `paw data model smollm2` has
    fetched it."""
    tiny: TinyModel | None = None
    """From scratch instead of `path` (needs `tokenizer`)."""
    tokenizer: str | None = None
    """Tokenizer folder; default: the one in `path`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights that compute; the optimizer keeps float32 beside them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more work. For
    policy.backend=huggingface; Megatron's is megatron.recompute."""
    head_chunk_rows: PositiveInt = 2048
    """Rows per chunk of the LM head: at most head_chunk_rows x V logits exist at once."""

    @field_validator("path", "tokenizer")
    @classmethod
    def _whole_path(cls, named: str | None) -> str | None:
        """A stored recipe finds its folders from any other one. What is no folder here is a name of the
        package or of a hub, or still to be made."""
        if named is None or policy_folder(named) is not None:
            return named
        try:
            folder = Path(named).expanduser()
            return os.path.abspath(folder) if folder.is_dir() else named
        except (OSError, RuntimeError):  # too long for a path; ~nobody
            return named


class WarmStartSection(Section):
    """How `paw warm-start` clones a small policy from expert play (see study/warmstart.py); training never
    reads it."""

    games: PositiveInt = 1600
    """Training games (a seeded choice, in proportion to their task types)."""
    hints: tuple[Fraction, ...] = (0.15, 0.3, 0.5, 0.75)
    """One episode per game and value: the probability that the expert searches where the walkthrough goes,
    else in an unvisited place."""
    detour: Fraction = 0.1
    """In every second episode, the share of steps in which a random admissible command is played; the
    expert's own command is what is cloned."""
    habit: Fraction = 0.0
    """Share of the expert's steps at which what is cloned is a bad habit: it looks about (ALFWorld), buys
    whatever is chosen (WebShop), or guesses before it has read (search). That costs success in every task
    alike: something for RL to unlearn which is not particular to one."""
    fumble: Fraction = 0.2
    """Share of states before which a command that is not admissible is inserted into the history: it changes
    nothing, and the expert goes on. A policy that never saw one repeats it for ever."""
    max_steps: PositiveInt = 40
    """Longest episode of expert play."""
    steps: PositiveInt = 2500
    """Optimizer steps."""
    batch_tokens: PositiveInt = 8192
    """Tokens of one optimizer step."""
    lr: PositiveFloat = 1e-3
    """Highest learning rate; it rises over 100 steps and falls along a cosine."""
    prompt_weight: NonNegative = 0.1
    """Weight of the language-model loss on prompt tokens beside the loss on the answer; a stand-in for
    pretraining."""


class OptimizerSection(Section):
    """AdamW and how an update is cut into steps."""

    lr: PositiveFloat = 1e-6
    """Learning rate of the policy."""
    critic_lr: PositiveFloat = 1e-5
    """Learning rate of PPO's critic."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: PositiveFloat = 1e-8
    """AdamW's term against division by nearly 0."""
    weight_decay: NonNegative = 0.01
    """AdamW's, on matrices only."""
    warmup_updates: Annotated[int, Field(ge=0)] = 0
    """Updates over which the learning rate rises to its full size."""
    warmup_share: Fraction = 0.0
    """The same as a share of the run's updates, rounded down."""
    clip_grad: PositiveFloat = 1.0
    """Longest gradient (2-norm over all weights) that a step takes; longer ones are scaled down to it."""
    epochs: PositiveInt = 1
    """Passes over an update's experience."""
    mini_batch: PositiveInt | None = None
    """Transitions per optimizer step; none: the whole update."""
    max_tokens_per_micro_batch: PositiveInt = 16384
    """Tokens of one forward and backward pass, which context-parallel ranks share; more are faster, and take
    more memory. A longer sequence is a pass of its own."""


class PolicySection(Section):
    """What trains the policy."""

    backend: Literal["huggingface", "megatron"] = "huggingface"
    """huggingface: one process, CPU or one GPU; megatron: many processes, laid out by the section
    `megatron`."""
    merge_turns: bool = True
    """Where the prompts of an episode go on from one another (env.prompt=conversation), compute the episode
    as one sequence, in which every token is once, and not each step with all that came before it. It changes
    what an update costs, and with optimizer.mini_batch which transitions come into one step; with other
    prompts nothing."""
    skip_zero_gradient: bool = False
    """Compute no pass of the update over sequences that cannot move the policy: all of their group were
    equally good, nothing of them is an observation to learn, and neither KL loss nor entropy bonus is on.
    Gradients are the same up to rounding. `policy/entropy` and `policy/approx_kl` are then means over what is
    trained on, and `policy/tokens` and `policy/rows` count no more than that."""
    share_prefixes: bool = False
    """Compute once what sequences of a pass begin with alike, as members of a group do with their first
    prompt: a token at the same place behind the same tokens has the same hidden state. Losses and gradients
    are the same up to rounding; `policy/shared_prefix_share` says how many tokens that saved. Attention is
    still of whole sequences, by PyTorch's kernels: with Megatron, megatron.layers is then local."""


class MegatronSection(Section):
    """How processes share the model (`policy.backend: megatron`). It changes what an update costs, not what
    it computes."""

    tensor_parallel: PositiveInt = 1
    """Processes that share every matrix."""
    pipeline_parallel: PositiveInt = 1
    """Stages into which the layers are cut."""
    virtual_pipeline: PositiveInt | None = None
    """Model chunks per pipeline rank (interleaved schedule); none: one."""
    context_parallel: PositiveInt = 1
    """Ranks that share the tokens of every pass, for sequences longer than one of them may hold; they divide
    the attention heads of a tensor-parallel rank. Of Megatron-core's own layers alone."""
    data_parallel: PositiveInt | None = None
    """Replicas; none: as many as the started processes make up, and one where `paw train` starts the
    processes itself."""
    sequence_parallel: bool = False
    """Split norms and residuals over the tensor-parallel ranks, too."""
    distributed_optimizer: bool = True
    """Shard optimizer states over the data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Sum gradients over replicas while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gather updated weights while the next forward pass has begun."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: those of attention, or of whole layers."""
    recompute_layers: PositiveInt = 1
    """Layers per recomputed block (`recompute: full`)."""
    layers: Literal["auto", "local", "transformer_engine"] = "auto"
    """Whose layers: auto takes Transformer Engine's where it is installed, else Megatron-core's own with
    PyTorch's attention."""
    reference_on_cpu: bool = True
    """Keep the reference policy in CPU memory between uses."""
    timeout_s: PositiveFloat = 1800.0
    """A collective that waits longer than this ends the run."""
