"""How a server is started: its command line, its environment, and the process that owns it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from paw_hpc.recipe import FleetSection, Recipe
from paw_hpc.system.errors import RecipeError
from paw_hpc.system.keys import write_secret
from paw_hpc.system.seeding import derive_seed
from paw_hpc.system.slurm import SlurmError, hostnames

_PACKAGE = Path(__file__).parent
SUPERVISOR = _PACKAGE / "serve.py"
CPU_SHIM = _PACKAGE / "cpu_shim"
CPU_CACHED_REQUESTS = 64
"""Longest requests that the KV cache of a server on a CPU has room for, unless the recipe says."""
ENDING_S = 20.0
TAIL_LINES = 8
NO_WEIGHTS = "none"
"""The weight version that a server reports before its first publication."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What it takes to start any server of a fleet."""

    python: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    hosts: tuple[str, ...]
    """Where srun starts them, in turn; empty: on this machine."""
    logs: Path
    seed: int
    gpus: int
    """GPUs of one server; 0: it runs on a CPU."""
    key_config: Path | None = None
    """A file of arguments that only this user can read, with the servers' key. None: they ask for none."""

    def order(self, host: str, seed: int, gpu: int, log: Path | str) -> dict[str, Any]:
        """What the supervisor (serve.py) is told, in the sight of every user of the node: the key is named by
        its file alone.

        Args:
            gpu: the first of the server's, where it has any.
        """
        first = ["--base-gpu-id", str(gpu)] if self.gpus else []
        return {
            "arguments": [*self.arguments, *first, "--random-seed", str(seed % 2**31)],
            "key_config": None if self.key_config is None else str(self.key_config),
            "host": host,
            "log": str(log),
            "environment": self.environment,
        }

    def forget_key(self) -> None:
        """Once no server is left, the key opens nothing and need not lie about."""
        if self.key_config is not None:
            self.key_config.unlink(missing_ok=True)

    def log(self, index: int) -> Path:
        return self.logs / f"server-{index}.log"


def make_launch(
    recipe: Recipe, workspace: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, key: str
) -> Launch:
    """Write what servers start from to `workspace`/base (no weights: they get those by publication, so that
    no server ever plays with others), and their key beside it.

    Raises:
        RecipeError: there is no such interpreter.
    """
    fleet, base = recipe.rollout.fleet, workspace / "base"
    if not Path(fleet.python).is_file():
        raise RecipeError(
            f"rollout.fleet.python: no interpreter at {fleet.python!r}; run `make setup-sglang`, or name "
            "that of your SGLang installation"
        )
    base.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(base)
    arguments = [
        "--model-path",
        str(base.resolve()),
        "--load-format",
        "dummy",
        "--weight-version",
        NO_WEIGHTS,
        "--dtype",
        recipe.model.dtype,
    ]
    if recipe.rollout.stop:
        # A folder without config.json: SGLang would put the usual tokenizer of the model type in the place of
        # a plain one.
        tokenizer.save_pretrained(base / "tokenizer")
        arguments += ["--tokenizer-path", str((base / "tokenizer").resolve())]
    else:
        arguments += ["--skip-tokenizer-init"]
    device = device_of(fleet)
    # The time to the first token comes with the metrics. These are for everybody, and name the model: by
    # default, with its path.
    arguments += [*_device_arguments(recipe, device), "--enable-metrics", "--served-model-name", "policy"]
    arguments += ["--skip-server-warmup", *fleet.arguments]
    key_config = workspace / "key.yaml"
    write_secret(key_config, json.dumps({"api-key": key}) + "\n")  # which is YAML, too
    return Launch(
        # not resolved: the link in a virtual environment is what makes it one
        python=str(Path(fleet.python).absolute()),
        arguments=tuple(arguments),
        environment=_environment(fleet, device),
        hosts=_hosts(fleet),
        logs=workspace,
        seed=recipe.seed,
        gpus=fleet.tensor_parallel if device == "cuda" else 0,
        key_config=key_config.resolve(),
    )


def device_of(fleet: FleetSection) -> str:
    """cpu or cuda. `auto` goes by what this machine has."""
    return fleet.device if fleet.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


def _device_arguments(recipe: Recipe, device: str) -> list[str]:
    fleet, rollout = recipe.rollout.fleet, recipe.rollout
    arguments = ["--device", device, "--tp-size", str(fleet.tensor_parallel)]
    cache_tokens = fleet.cache_tokens
    if device == "cpu":
        cache_tokens = cache_tokens or CPU_CACHED_REQUESTS * (
            rollout.max_prompt_tokens + rollout.max_response_tokens
        )
        arguments += [
            "--attention-backend",
            "torch_native",
            "--sampling-backend",
            "pytorch",
            "--disable-cuda-graph",
            "--sleep-on-idle",
        ]
        arguments += ["--mem-fraction-static", "0.3"]
    else:
        arguments += ["--mem-fraction-static", str(fleet.memory_fraction)]
    arguments += ["--max-total-tokens", str(cache_tokens)] if cache_tokens else []
    arguments += ["--enable-deterministic-inference"] if fleet.deterministic else []
    arguments += ["--enable-memory-saver"] if fleet.colocated and device == "cuda" else []
    return arguments


def _environment(fleet: FleetSection, device: str) -> dict[str, str]:
    # Under torchrun, a rendezvous of the server's own ranks would end up at torchrun's store.
    common = {"TORCHELASTIC_USE_AGENT_STORE": "False"}
    if device != "cpu":
        return common
    return common | {
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": str(fleet.threads),
        "PYTHONPATH": str(CPU_SHIM),
        "HF_HUB_OFFLINE": "1",
    }


def _hosts(fleet: FleetSection) -> tuple[str, ...]:
    if fleet.hosts != ("allocation",):
        return fleet.hosts
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if nodes is None:
        raise RecipeError(
            "rollout.fleet.hosts: 'allocation' needs a Slurm job (SLURM_JOB_NODELIST is not set); name the "
            "hosts, or leave it empty"
        )
    try:
        return tuple(hostnames(nodes))
    except SlurmError as error:
        raise RecipeError(
            f"rollout.fleet.hosts: the nodes '{nodes}' cannot be resolved ({error}); name the hosts"
        ) from None


class ServerProcess:
    """A server that this run started: a supervisor (see serve.py) that ends it when this object is ended, or
    this process dies."""

    def __init__(self, process: asyncio.subprocess.Process, where: dict[str, Any], log: Path, begins: int):
        self._process, self._log, self._begins = process, log, begins
        self.url = f"http://{where['host']}:{where['port']}"
        self.pid = int(where["pid"])
        """Of the server itself, on its host."""

    @classmethod
    async def start(cls, launch: Launch, index: int, attempt: int) -> ServerProcess:
        """Raises OSError where no process can be started at all (no srun, no such host)."""
        host = launch.hosts[index % len(launch.hosts)] if launch.hosts else "127.0.0.1"
        log = launch.log(index)
        begins = log.stat().st_size if log.exists() else 0
        gpu = index // max(1, len(launch.hosts)) * launch.gpus
        # Servers that draw from equal seeds would play equal episodes.
        order = launch.order(host, derive_seed(launch.seed, "server", index, attempt), gpu, log.resolve())
        step = (
            ["srun", "--nodes=1", "--ntasks=1", "--overlap", "--unbuffered", f"--nodelist={host}"]
            if launch.hosts
            else []
        )
        process = await asyncio.create_subprocess_exec(
            *step,
            launch.python,
            str(SUPERVISOR),
            json.dumps(order),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is the trainer's to obey
        )
        assert process.stdout is not None
        try:
            line = await process.stdout.readline()
        except asyncio.CancelledError:
            await _end(process)
            raise
        if not line:
            raise OSError(
                f"{' '.join(step[:1]) or launch.python} ended with status {await process.wait()} before it "
                "said where the server is"
            )
        return cls(process, json.loads(line), log, begins)

    async def ended(self) -> int:
        """Wait for its end; the exit status."""
        return await self._process.wait()

    @property
    def status(self) -> int | None:
        return self._process.returncode

    async def end(self) -> None:
        """End the server with all its processes, frozen ones too."""
        await _end(self._process)

    def last_words(self) -> str:
        """The last lines of its log, of this start only."""
        with open(self._log, "rb") as file:
            file.seek(max(self._begins, file.seek(0, os.SEEK_END) - 8192))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        return "\n".join([line for line in lines if line][-TAIL_LINES:])


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), ENDING_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
