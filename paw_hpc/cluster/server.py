"""One SGLang server of a launched run: `python -m paw_hpc.cluster.server RUN`, started by the supervisor on
every rollout node.

Starts the server at the port that the trainer knows from the attempt's key, and starts it anew when it dies;
the trainer's fleet sees that, gives it the current weights, and only then uses it. Ends it when standard
input closes: the supervisor lets go, or is dead.

SIGTERM is not for servers: when Slurm is about to end the job it sends it to every process, and the trainer,
which obeys it by finishing its update, still needs them. So all processes of a server have it blocked, and
are killed in the end: they hold nothing that is worth saving.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from paw_hpc.cluster.layout import port
from paw_hpc.policy.loading import initial_folder, load_tokenizer
from paw_hpc.recipe import Recipe, policy_folder
from paw_hpc.rollout.sglang.process import SUPERVISOR, Launch, make_launch
from paw_hpc.run import fence
from paw_hpc.run.metrics import RunDirectory
from paw_hpc.system import children
from paw_hpc.system.errors import UserError
from paw_hpc.system.keys import INHERITED_KEY, read_key
from paw_hpc.system.seeding import derive_seed

POLL_S = 0.2
ENDING_S = 15.0


def main(path: str) -> int:
    """Exit status: 0 when it was ended, 2 for a UserError, else the server's own after one restart too
    many."""
    run = Path(path)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # the trainer's business
        signal.signal(number, signal.SIG_IGN)
    try:
        recipe = RunDirectory(run).recipe()
        place = _Place.of_environment()
        key = read_key(os.environ[INHERITED_KEY], INHERITED_KEY)
        launch = make_launch(recipe, _workspace(run, place), *_model(recipe), key)
    except UserError as error:
        print(f"paw: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    try:
        for restart in range(recipe.rollout.fleet.max_restarts + 1):
            status = _serve(launch, place, port(key, "server", place.index), restart)
            if status is None:
                return 0
            print(
                f"paw: the server on {place.host} ended with status {status} (start {restart + 1})",
                file=sys.stderr,
                flush=True,
            )
        return status or 1
    finally:
        launch.forget_key()


class _Place:
    """Which server this is."""

    def __init__(self, host: str, index: int, rank: int):
        self.host, self.index, self.rank = host, index, rank

    @classmethod
    def of_environment(cls) -> _Place:
        """From srun, or from the supervisor on a single machine (where every server has its own index)."""
        variables = os.environ
        if "SLURM_LOCALID" in variables:
            return cls(
                variables.get("SLURMD_NODENAME") or socket.gethostname(),
                int(variables["SLURM_LOCALID"]),
                int(variables["SLURM_PROCID"]),
            )
        return cls("127.0.0.1", int(variables["RANK"]), int(variables["RANK"]))


def _workspace(run: Path, place: _Place) -> Path:
    """A folder of its own: every server writes the model's configuration there."""
    number = os.environ.get(fence.INHERITED, "").partition(":")[0] or "0"
    return run / f"attempt_{number}" / "servers" / f"{place.host}-{place.index}"


def _model(recipe: Recipe) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer; weights come from the trainer."""
    tokenizer = load_tokenizer(recipe.model)
    if recipe.model.path is not None:
        return AutoConfig.from_pretrained(policy_folder(recipe.model.path) or recipe.model.path), tokenizer
    with tempfile.TemporaryDirectory() as scratch:
        return AutoConfig.from_pretrained(initial_folder(recipe, tokenizer, Path(scratch))), tokenizer


def _serve(launch: Launch, place: _Place, first: int, restart: int) -> int | None:
    """One life of the server: its exit status, or None when it was let go."""
    seed = derive_seed(launch.seed, "server", place.rank, restart)
    order = {
        # the group's log, by node
        **launch.order(place.host, seed, place.index * launch.gpus, "/dev/stderr"),
        "ports": [first, first + 1],
        "patience_s": 0.0,  # it would not hear that it is asked
    }
    command = [launch.python, str(SUPERVISOR), json.dumps(order)]
    process = children.start(command, stdin=subprocess.PIPE, preexec_fn=_block_sigterm)
    try:
        while process.poll() is None:
            ready, _, _ = select.select([0], [], [], POLL_S)
            if ready and not os.read(0, 4096):
                return None
        return process.returncode
    finally:
        if not children.let_go(process, patience_s=ENDING_S):
            children.end(process, 0)


def _block_sigterm() -> None:
    """For a child and all that it starts: a mask is inherited, and handlers that a program sets change
    nothing about it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
