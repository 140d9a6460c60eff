"""The running roles of one job: as steps of a Slurm allocation, or as plain processes of this machine. Both
are started, told, and ended alike."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from paw_hpc.cluster.layout import Role
from paw_hpc.recipe import ClusterSection
from paw_hpc.system import children

LOOPBACK = "127.0.0.1"
"""The host of every node where this machine stands in for all of them."""
RETRIEVER = "PAW_RETRIEVER"
"""Environment variable: address of the job's own retrieval server, which stands in for the recipe's
`env.search.url`."""
GRACE_S = 25.0
"""How long a role may take to end once it was asked to."""


def started_file(logs: Path, rank: int) -> Path:
    """Exists once that rank of the trainer can be asked to stop."""
    return logs / f".started-{rank}"


def ended_file(logs: Path, rank: int) -> Path:
    """Exists once that rank of the trainer has left the loop by itself, everything saved. A step that Slurm
    ends may have status 0, too."""
    return logs / f".ended-{rank}"


class RunningRole(Protocol):
    """A running role."""

    role: Role

    def poll(self) -> int | None:
        """Its exit status once all of it has ended, the first failure's where there is one; None while it
        runs."""
        ...

    def ask_to_stop(self) -> None:
        """SIGUSR1 to its processes: the trainer saves and ends after the update that it is in."""
        ...

    def end(self, *, at_once: bool = False) -> None:
        """Nothing of it is left when this returns. Its processes are asked first (standard input closes),
        unless `at_once`."""
        ...


class Machine(Protocol):
    """Where roles run."""

    hosts: Sequence[str]
    """Names of the layout's nodes."""

    def start(
        self, role: Role, command: Sequence[str], environment: Mapping[str, str], logs: Path
    ) -> RunningRole: ...


@dataclass
class SlurmMachine:
    """The allocation that this process runs in."""

    job: int
    hosts: Sequence[str]
    settings: ClusterSection
    mounts: Sequence[Path] = ()

    def start(
        self, role: Role, command: Sequence[str], environment: Mapping[str, str], logs: Path
    ) -> SrunRole:
        log = logs / f"{role.name}-%N.log"
        srun = [*self.srun(role), f"--output={log}", *self.in_container(command)]
        # Standard input is what `end` closes.
        process = children.start(
            srun,
            env={**_clean(os.environ), **self.settings.environment, **environment},
            stdin=subprocess.PIPE,
        )
        return SrunRole(role, process)

    def srun(self, role: Role) -> list[str]:
        """srun's own arguments. Everything is said: srun takes what is not said from the variables of the
        job, and places tasks as it likes."""
        settings = self.settings
        arguments = [
            "srun",
            "--exact",
            f"--nodelist={','.join(self.hosts[i] for i in role.node_indices)}",
            f"--nodes={role.nodes}",
            f"--ntasks={role.processes}",
            f"--ntasks-per-node={role.processes_per_node}",
            f"--cpus-per-task={max(1, settings.cpus_per_node // role.processes_per_node)}",
            f"--job-name={role.name}",
            "--kill-on-bad-exit=1",
            "--wait=0",
            "--unbuffered",
            "--open-mode=append",
        ]
        if role.gpus_per_process:
            arguments.append(f"--gpus-per-node={role.gpus_per_node}")
        return [*arguments, *self._pyxis(), *settings.srun]

    def in_container(self, command: Sequence[str]) -> list[str]:
        """The command, inside an Apptainer image where the recipe asks for one (pyxis is a matter of srun's
        arguments)."""
        container = self.settings.container
        if container is None or container.runtime != "apptainer":
            return list(command)
        binds = [
            f"--bind={mount}" for mount in (*(f"{path}:{path}" for path in self.mounts), *container.mounts)
        ]
        gpus = ["--nv"] if self.settings.gpus_per_node else []
        return [
            "apptainer",
            "exec",
            *gpus,
            *binds,
            f"--pwd={Path.cwd()}",
            *container.arguments,
            container.image,
            *command,
        ]

    def _pyxis(self) -> list[str]:
        container = self.settings.container
        if container is None or container.runtime != "pyxis":
            return []
        mounts = ",".join((*(f"{path}:{path}" for path in self.mounts), *container.mounts))
        return [
            f"--container-image={container.image}",
            f"--container-mounts={mounts}",
            f"--container-workdir={Path.cwd()}",
            *container.arguments,
        ]


@dataclass
class SrunRole:
    """A job step."""

    role: Role
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        status = self.process.poll()
        return None if status is None else status if status >= 0 else 128 - status

    def ask_to_stop(self) -> None:
        # srun passes it on to the tasks without asking slurmctld, which may be away.
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGUSR1)

    def end(self, *, at_once: bool = False) -> None:
        if children.let_go(self.process, patience_s=0.0 if at_once else GRACE_S):
            return
        # On SIGTERM srun ends its step: the tasks get SIGKILL.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            if children.wait(self.process, 10.0):
                return


@dataclass
class LocalMachine:
    """This machine, in the place of every node of the layout."""

    settings: ClusterSection
    hosts: Sequence[str]

    @classmethod
    def of(cls, settings: ClusterSection, nodes: int) -> LocalMachine:
        return cls(settings, [LOOPBACK] * nodes)

    def start(
        self, role: Role, command: Sequence[str], environment: Mapping[str, str], logs: Path
    ) -> LocalRole:
        running = LocalRole(role)
        threads = max(1, (os.cpu_count() or 1) // role.processes)
        for rank in range(role.processes):
            name = f"{role.name}-{socket.gethostname()}" + (f"-{rank}" if role.processes > 1 else "")
            ranks = {
                "RANK": str(rank),
                "WORLD_SIZE": str(role.processes),
                "LOCAL_RANK": str(rank % role.processes_per_node),
            }
            defaults = {"OMP_NUM_THREADS": str(threads), **_clean(os.environ)}
            with open(logs / f"{name}.log", "ab") as log:
                process = children.start(
                    command,
                    env={**defaults, **self.settings.environment, **environment, **ranks},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            running.processes.append(process)
        return running


@dataclass
class LocalRole:
    """Plain processes; when one fails the others are ended."""

    role: Role
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _failed: int | None = None

    def poll(self) -> int | None:
        statuses = [process.poll() for process in self.processes]
        if self._failed is None:
            self._failed = next((status for status in statuses if status), None)
            if self._failed is not None:
                self.end(at_once=True)
        if self._failed is not None:
            return self._failed if self._failed >= 0 else 128 - self._failed
        return None if None in statuses else 0

    def ask_to_stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGUSR1)

    def end(self, *, at_once: bool = False) -> None:
        children.let_go(*self.processes, patience_s=0.0 if at_once else GRACE_S)
        for process in self.processes:
            children.end(process)


_OF_A_STEP = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_STEP_ID",
)


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what says which task of its job the batch script is: srun would take sizes from it, and
    processes would take themselves for ranks."""
    dropped = (
        "SLURM_NTASKS",
        "SLURM_NPROCS",
        "SLURM_CPUS_PER_TASK",
        "SLURM_TASKS_PER_NODE",
        "SLURM_DISTRIBUTION",
        "SLURM_CPU_BIND",
        "SLURM_MEM_BIND",
    )
    return {
        name: value
        for name, value in environment.items()
        if name not in _OF_A_STEP and not name.startswith(dropped)
    }


def shown(command: Sequence[str]) -> str:
    """For the log."""
    return shlex.join(command)
