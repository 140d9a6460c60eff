"""Where the processes of a run meet, and how they know each other.

torch's store, gloo and NCCL ask nobody who they are. So the store listens at the run's own address, at a port
that does not follow from the job's number, and the first thing that every process does there is to leave a
proof that it knows the word of the run: the key of its attempt, in a file that the run's owner alone can read
(`PAW_KEY_FILE`, see keys.py). Only then does anything go through that is unpickled. What they agree on
afterwards is kept under a name that follows from the word: two runs which come to the same store by mistake
do not hear each other.

Ranks that torchrun or srun started without such a file have names for a word (job, step, torchrun's id): that
tells runs apart, and stops no stranger who means harm.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import ipaddress
import os
import socket
import time

import torch.distributed as dist

from paw_hpc.system.errors import RecipeError, UserError
from paw_hpc.system.keys import INHERITED_KEY, read_key
from paw_hpc.system.slurm import SlurmError, hostnames

_SLURM_PORTS = (20_000, 20_000)
"""First port and how many: where srun started the ranks, they meet at the job's id modulo their number."""
_NAMES = ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID")


class Stranger(UserError):
    """A process that is not of this run has come to its meeting point. Nothing of it was believed; the same
    run may well succeed at another port."""


def derived(key: str, purpose: str) -> bytes:
    """32 bytes that follow from a key, and from which it does not."""
    return hmac.new(key.encode(), purpose.encode(), hashlib.sha256).digest()


def word_of_run() -> str:
    """What the processes of this run know and others do not (see above). Raises UserError where the file
    cannot be used."""
    file = os.environ.get(INHERITED_KEY)
    return (
        read_key(file, INHERITED_KEY)
        if file
        else " ".join(["no key", *(os.environ.get(name, "") for name in _NAMES)])
    )


def open_store(address: str, port: int, patience_s: float) -> dist.TCPStore:
    """A store that listens at one address (PyTorch's own listens at all of the machine's) and waits for
    nobody.

    Args:
        address: name or number; where a machine's name means its own loopback, as some distributions have it,
            the store listens at all addresses.
        port: 0 for any.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    if ipaddress.ip_address(place[0]).is_loopback and not _means_loopback(address):
        place = ("", port)
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(socket.SOMAXCONN)
        port = listening.getsockname()[1]
        patience = datetime.timedelta(seconds=patience_s)
        descriptor = listening.detach()  # the store's from here on
    return dist.TCPStore(
        address, port, is_master=True, wait_for_workers=False, timeout=patience, master_listen_fd=descriptor
    )


def meeting_point() -> tuple[str, int]:
    """Address and port: MASTER_ADDR and MASTER_PORT, where whoever started the ranks says so (torchrun, a
    job's supervisor, `run_here`); else srun did, and they meet on the first node of its step, at a port that
    follows from the job's id.

    Raises:
        RecipeError: nobody says it, or the step's nodes have no names here.
    """
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise RecipeError(
            "megatron: this is one of several processes, but neither MASTER_ADDR and MASTER_PORT nor Slurm "
            "says where they meet"
        )
    try:
        first = hostnames(nodes)[0]
    except SlurmError as error:
        raise RecipeError(
            f"megatron: the nodes '{nodes}' cannot be resolved ({error}); set MASTER_ADDR and MASTER_PORT"
        ) from None
    low, count = _SLURM_PORTS
    return first, low + int(os.environ.get("SLURM_JOB_ID", "0")) % count


def meet(rank: int, processes: int, timeout_s: float) -> dist.Store:
    """The store of a run's processes at their meeting point, once each has shown that it is one of them.

    Raises:
        RecipeError: see `meeting_point`.
        Stranger: one has not the run's word.
        UserError: not all have come in time, or there is nothing to come to.
    """
    (address, port), word = meeting_point(), word_of_run()
    here = f"{address}:{port}"
    # else who started the ranks holds the store
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store = open_store(address, port, timeout_s)
    else:
        try:
            store = dist.TCPStore(
                address, port, is_master=False, timeout=datetime.timedelta(seconds=timeout_s)
            )
        except RuntimeError as error:
            raise UserError(
                f"megatron: process {rank} found no meeting point at {here} in {timeout_s:g} s "
                f"({' '.join(str(error).split())[:200]})"
            ) from None
    # torchrun keeps its store when it starts the ranks anew.
    hall = dist.PrefixStore(f"paw/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    _greet(hall, word, rank, processes, timeout_s, here)
    return dist.PrefixStore(derived(word, "group").hex(), hall)


def _greet(hall: dist.Store, word: str, rank: int, processes: int, timeout_s: float, here: str) -> None:
    hall.set(f"hello/{rank}", derived(word, f"hello {rank}").hex())
    deadline = time.monotonic() + timeout_s
    for other in range(processes):
        try:
            hall.wait([f"hello/{other}"], datetime.timedelta(seconds=max(1.0, deadline - time.monotonic())))
            said = hall.get(f"hello/{other}")
        except RuntimeError:
            raise UserError(
                f"megatron: process {other} of {processes} has not come to {here} in {timeout_s:g} s; see "
                "its log, and megatron.timeout_s"
            ) from None
        if not hmac.compare_digest(said, derived(word, f"hello {other}").hex().encode()):
            raise Stranger(
                f"megatron: what came to {here} as process {other} is not of this run (it does not know "
                "the run's word), so nothing is exchanged; "
                "is another run or program using this port? Start again: a new attempt takes another"
            )


def _means_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
