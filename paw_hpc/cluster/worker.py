"""One trainer process of a launched run: `python -m paw_hpc.cluster.worker RUN`, started by the supervisor on
every rank."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from paw_hpc.cluster.steps import RETRIEVER, ended_file, started_file
from paw_hpc.run import fence
from paw_hpc.run.metrics import RunDirectory
from paw_hpc.run.signals import StopRequest
from paw_hpc.system.distributed import Process
from paw_hpc.system.errors import UserError
from paw_hpc.system.meeting import Stranger
from paw_hpc.system.storage import write_atomically

_RETRIEVER_READY_S = 3600.0
_SOCKET_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def main(path: str) -> int:
    """Exit status: 0 when the run is complete or was stopped and saved, 2 for a UserError, 1 for anything
    else."""
    run = Path(path)
    # A signal that came before the loop listens would kill the process; ignored, it is repeated until the
    # loop hears it.
    for number in StopRequest.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        _check_visible(run)
        _say_started(run)
        _choose_interface()
        _wait_for_retriever()
        from paw_hpc import loop

        loop.train(RunDirectory(run).recipe(), run, command=f"paw launch: {' '.join(sys.argv)}")
        ended_file(_logs(run), Process.of_environment().rank).touch()
    except UserError as error:
        text = " ".join(str(error).split())
        print(f"paw: {text}", file=sys.stderr, flush=True)
        _report(run, text, refused=not isinstance(error, fence.StaleAttempt | Stranger))
        return 2
    except Exception as error:
        traceback.print_exc()
        _report(run, _explain(error), refused=False)
        return 1
    return 0


def _check_visible(run: Path) -> None:
    """Raises UserError where this node does not see the run that the job's first node has just written to."""
    if not _logs(run).is_dir():
        raise UserError(
            f"{run}: not visible on {socket.gethostname()}; put runs on a file system that all nodes share "
            "(paw launch --run-dir)"
        )


def _say_started(run: Path) -> None:
    started_file(_logs(run), Process.of_environment().rank).touch()


def _logs(run: Path) -> Path:
    """The folder of this attempt."""
    return run / f"attempt_{os.environ.get(fence.INHERITED, '').partition(':')[0]}"


def _choose_interface() -> None:
    """Tell gloo and NCCL which network interface reaches the meeting point, where nobody has: they would take
    the first, which may be a management or container network."""
    address = os.environ.get("MASTER_ADDR")
    if (
        address is None
        or Process.of_environment().processes == 1
        or all(name in os.environ for name in _SOCKET_VARIABLES)
    ):
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing: asks the routing table
        except OSError as error:
            raise UserError(
                f"{socket.gethostname()}: no route to {address} ({error}); set cluster.interface to the "
                "network that joins the nodes"
            ) from None
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == own for each in addresses):
            for variable in _SOCKET_VARIABLES:
                os.environ.setdefault(variable, name)
            return


def _wait_for_retriever() -> None:
    """Loading an index takes longer than an episode would wait; the server opens its port when it is ready.
    Should it end, the supervisor ends us."""
    address = urlsplit(os.environ.get(RETRIEVER, "")).netloc
    deadline = time.monotonic() + _RETRIEVER_READY_S
    while address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"the retriever at {address} is not ready after an hour ({error}); see the attempt's "
                    "retriever log"
                ) from None
        time.sleep(1.0)


def _explain(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())[:600]
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        port = os.environ.get("MASTER_PORT")
        return (
            f"port {port} on {socket.gethostname()} is taken by another program; the next attempt takes "
            f"another ({text})"
        )
    return text


def _report(run: Path, reason: str, *, refused: bool) -> None:
    """For the supervisor: ranks that are killed after the first failure must not hide its reason."""
    rank, folder = Process.of_environment().rank, _logs(run)
    if folder.is_dir():
        try:
            write_atomically(
                folder / f"failed-{rank}.json",
                json.dumps({"time": time.time(), "reason": reason, "refused": refused}) + "\n",
            )
        except (OSError, UserError):
            print("paw: the reason could not be written down; see above", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
