"""How episodes are played: in the trainer's process or by a fleet of servers, and how those get the
weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from paw_hpc.recipe.doors import ENGINES, Choice, check_options
from paw_hpc.recipe.section import Section

_OPENING = {
    "--api-key": "would be seen by every user of the node in its list of processes, and the run gives its "
    "servers a key by itself",
    "--admin-api-key": "would be seen by every user of the node in its list of processes, and the run "
    "gives its servers a key by itself",
    "--config": "names the file in which the run gives its servers their key, and SGLang takes one such "
    "file only",
    "--tokenizer-worker-num": "makes SGLang ask for no key at all",
}
"""Arguments of sglang.launch_server that would undo the key of a run's servers."""


class FleetSection(Section):
    """The SGLang servers that play episodes (`rollout.engine: sglang`). It changes what a rollout costs, not
    what it means."""

    servers: PositiveInt = 1
    """How many servers the run starts (and ends)."""
    addresses: tuple[str, ...] = ()
    """Use these servers instead, such as http://node7:30000; somebody else starts and ends them."""
    key_file: str | None = None
    """With `addresses`: a file with the key that these servers were started with (--api-key), which only you
    can read. Servers that the run starts have a key of their own."""
    hosts: tuple[str, ...] = ()
    """Nodes of the allocation on which srun starts the servers, in turn; `allocation` stands for all of its
    nodes. Empty: this machine."""
    python: str = ".venv-sglang/bin/python"
    """Interpreter of the environment that SGLang is installed in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where servers compute; auto: GPUs where there are any."""
    tensor_parallel: PositiveInt = 1
    """GPUs of one server."""
    memory_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8
    """Share of a GPU's memory for weights and KV cache."""
    cache_tokens: PositiveInt | None = None
    """Tokens in a server's KV cache; none: what memory_fraction leaves on a GPU, 64 of the longest requests
    on a CPU."""
    threads: PositiveInt = 1
    """Threads of a server on a CPU."""
    deterministic: bool = False
    """SGLang's deterministic inference: each turn's own seed is obeyed (needs one of its GPU attention
    backends)."""
    colocated: bool = False
    """Servers share the trainer's GPUs: their memory is released while it trains."""
    arguments: tuple[str, ...] = ()
    """Further arguments of sglang.launch_server, such as --attention-backend=fa3."""
    routing: Literal["least_loaded", "prefix"] = "least_loaded"
    """Which server plays a turn. prefix: the one that played the episode's last turn, whose cache holds the
    prompt's beginning, unless it has far more to do than the others."""
    concurrency: PositiveInt = 256
    """Turns that one server is asked for at once; further ones wait here."""
    start_timeout_s: PositiveFloat = 600.0
    """From the start of a server until it is healthy."""
    health_every_s: PositiveFloat = 10.0
    """How often each server is asked whether it is well."""
    health_timeout_s: PositiveFloat = 60.0
    """A server that does not answer for this long is stuck: it is ended and started anew."""
    request_timeout_s: PositiveFloat = 1800.0
    """Longest wait for one turn."""
    max_restarts: Annotated[int, Field(ge=0)] = 5
    """Of one server in a row, each within start_timeout_s of its being healthy; then it is given up."""

    @model_validator(mode="after")
    def _closed(self) -> FleetSection:
        if self.key_file is not None and not self.addresses:
            raise ValueError(
                "key_file: it goes with addresses; servers that the run starts get a key of their own"
            )
        for argument in self.arguments:
            name = argument.partition("=")[0].replace("_", "-")
            if name in _OPENING:
                raise ValueError(f"arguments: {name} {_OPENING[name]}; leave it out")
        return self


class PublishSection(Section):
    """How new weights reach the servers."""

    path: Literal["disk", "broadcast", "tensor"] = "disk"
    """disk: a folder that trainer and servers see; broadcast: a process group (NCCL between GPUs, else gloo);
    tensor: shared memory (CUDA IPC between GPUs) of a server on the same machine."""
    bucket_mib: PositiveInt = 1024
    """Tensors travel in buckets; this much memory beyond the model is used at most (unless one tensor is
    larger), gathering from the trainer's processes included."""
    timeout_s: PositiveFloat = 600.0
    """Of one publication to all servers."""
    sampled_tensors: PositiveInt | Literal["all"] = 8
    """Tensors whose checksums are compared on every server after each publication, other ones every time; or
    all, which on a CPU takes longer than sending them."""


class RolloutSection(Section):
    """How groups of episodes are played."""

    engine: Annotated[str, Choice(ENGINES)] = "local"
    """local: in the trainer's process, with its live weights; sglang: servers (sections `fleet` and
    `publish`); one more is brought by `plugins`."""
    options: dict[str, Any] = Field(default={})
    """Keys of an engine that a plugin brings."""
    fleet: FleetSection = FleetSection()
    publish: PublishSection = PublishSection()
    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """0: every episode is played with the weights that it trains (the paper's setting). 1: the next update's
    episodes are played while this one is trained; weights change under their feet, and
    algorithm.truncated_importance corrects for that."""
    max_logprob_gap: PositiveFloat | None = None
    """Stop the run when the mean of |trainer's log-prob - engine's log-prob| over an update's action tokens
    exceeds this (nats); none: never."""
    groups: PositiveInt = 16
    """Tasks of an update."""
    group_size: PositiveInt = 8
    """Episodes of each task."""
    temperature: PositiveFloat = 1.0
    """Of sampling, and of every log-prob that is trained on."""
    max_prompt_tokens: PositiveInt = 2048
    """Longest prompt; older history is dropped until it fits."""
    max_response_tokens: PositiveInt = 512
    """Longest response; longer ones are cut off."""
    stop: tuple[str, ...] = ()
    """Generation also ends when one of these strings has been produced (it is kept in the response)."""
    batching: Literal["deterministic", "eager"] = "deterministic"
    """deterministic: the composition of each generation batch depends on the episodes alone, so a run repeats
    bit for bit on any number of workers; eager: whatever waits is generated at once."""
    max_batch: PositiveInt = 128
    """Requests that the in-process engine generates together (bounds the KV cache)."""

    @property
    def own_weights(self) -> bool:
        """Whether the engine samples in the trainer's process, with its own weights."""
        return ENGINES.find(self.engine).own_weights

    @property
    def starts_servers(self) -> bool:
        """Whether the engine starts the servers of `fleet`."""
        return ENGINES.find(self.engine).starts_servers

    @model_validator(mode="after")
    def _options(self) -> RolloutSection:
        check_options(ENGINES, self.engine, self.options)
        return self
