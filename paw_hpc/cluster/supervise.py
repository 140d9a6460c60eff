"""One attempt of a launched run: starts its roles, watches them, and sees that they end together.

The first role that ends decides. The trainer ends by itself when the run is complete, and after a signal
once it has saved; then servers are ended. When the rollout or the retriever ends first, the trainer is
ended at once: it could only wait. Nothing is left behind in any case.

Signals: SIGUSR2 (Slurm's warning before the time limit, and before preemption where the cluster is set so),
SIGTERM (preemption, `scontrol requeue`, `scancel`) and Ctrl-C ask the trainer to stop after the update that
it is in; its ranks agree on which. Why it ended is read from what it left (its exit status, its checkpoints),
not from the signal.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from paw_hpc.cluster import attempts, slurm
from paw_hpc.cluster.layout import ClusterLayout, Role, lay_out, port
from paw_hpc.cluster.steps import LOOPBACK, RETRIEVER, Machine, RunningRole, ended_file, started_file
from paw_hpc.recipe import Recipe
from paw_hpc.run import fence
from paw_hpc.run.metrics import RunDirectory
from paw_hpc.system.keys import INHERITED_KEY, KEY_FILE, new_key, write_secret

_log = logging.getLogger(__name__)
POLL_S = 0.1
TELL_EVERY_S = 2.0
USER_ERROR = 2
"""Exit status of a trainer that met a UserError: another attempt would meet it again."""
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Ending(Enum):
    """How an attempt ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    """By a signal, with a checkpoint: the next attempt continues."""
    REFUSED = "refused"
    """An error that the user must put right."""
    FAILED = "failed"
    """Anything else: another attempt may succeed."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one attempt."""

    ending: Ending
    how: str
    """The reason in one line."""
    status: int


class Supervisor:
    """Runs one attempt.

    Args:
        run: an existing run directory (its recipe.yaml is what runs).
        machine: of the allocation, or this one.
        job: the allocation's id; any number outside of Slurm.
        python: interpreter of the roles.
    """

    def __init__(self, run: Path, machine: Machine, job: int, python: str = sys.executable):
        self.run, self.machine, self.job, self.python = run.resolve(), machine, job, python
        self.recipe: Recipe = RunDirectory(run).recipe()
        self.layout: ClusterLayout = lay_out(self.recipe)
        self.asked: str | None = None
        """The signal that asked for a stop."""
        self._told = -math.inf
        self._key = ""
        """Of the attempt."""

    def attempt(self) -> Result:
        """From claim to record; a run that is complete is left alone.

        Raises:
            NoProgress: too many attempts before this one ended without a checkpoint.
        """
        # Slurm requeued a job that had just completed
        if (saved := attempts.saved_updates(self.run)) >= self.recipe.updates:
            _log.info("%s: complete already", self.run)
            return Result(Ending.COMPLETE, f"complete: {saved} updates", 0)
        attempts.check_progress(self.run, self.recipe.cluster.attempts)
        with self._signals():
            number = fence.claim(self.run)
            logs = self.run / f"attempt_{number}"
            attempts.begin(self.run, number, slurm.job_name(self.job), list(self.machine.hosts))
            _log.info(
                "attempt %d of %s from update %d, on %s",
                number,
                self.run,
                attempts.saved_updates(self.run),
                ", ".join(self.machine.hosts),
            )
            result = self._guarded(number, logs)
            attempts.end(self.run, number, result.how)
        _log.info("attempt %d: %s", number, result.how)
        return result

    def _guarded(self, number: int, logs: Path) -> Result:
        running: list[RunningRole] = []
        self._key = new_key()
        write_secret(logs / KEY_FILE, self._key)
        try:
            for role in reversed(self.layout.roles):  # servers first: they take longest to come up
                running.append(
                    self.machine.start(role, self._command(role, number), self._environment(number), logs)
                )
            first = self._watch(running, logs)
            return self._judge(first, logs)
        finally:
            trainer_ended = any(one.role.name == "trainer" and one.poll() is not None for one in running)
            for one in reversed(running):  # the trainer before what it talks to
                one.end(
                    at_once=one.role.name == "retriever" or (one.role.name == "trainer" and not trainer_ended)
                )
            (logs / KEY_FILE).unlink(missing_ok=True)  # it opens nothing any more

    def _watch(self, running: list[RunningRole], logs: Path) -> RunningRole:
        """The first one to end; a stop is passed on meanwhile."""
        trainer = next(one for one in running if one.role.name == "trainer")
        while True:
            if self.asked is not None:
                self._tell(trainer, logs)
            ended = [one for one in running if one.poll() is not None]
            if trainer in ended:
                return trainer
            # Once the whole job has been told to end, servers may go first: the trainer may still be saving.
            if ended and self.asked is None:
                return ended[0]
            time.sleep(POLL_S)

    def _tell(self, trainer: RunningRole, logs: Path) -> None:
        """Ask the trainer to stop, and again while the loop may not listen yet; but not before its processes
        have begun: it would kill them."""
        if not all(started_file(logs, rank).exists() for rank in range(trainer.role.processes)):
            return
        if time.monotonic() - self._told >= TELL_EVERY_S:
            if self._told == -math.inf:
                _log.info("%s: the trainer is asked to stop after this update", self.asked)
            trainer.ask_to_stop()
            self._told = time.monotonic()

    def _judge(self, first: RunningRole, logs: Path) -> Result:
        status, saved = first.poll(), attempts.saved_updates(self.run)
        assert status is not None
        if first.role.name != "trainer":
            words = _last_words(logs, first.role.name)
            return Result(
                Ending.FAILED,
                f"the {first.role.name} group ended with status {status}{words}, so the trainer was ended",
                status or 1,
            )
        if status == 0 and saved >= self.recipe.updates:
            return Result(Ending.COMPLETE, f"complete: {saved} updates", 0)
        if status == 0 and ended_file(logs, 0).exists():
            return Result(
                Ending.STOPPED, f"stopped by {self.asked or 'a signal'} after update {saved}, saved", 0
            )
        reason, refused = _reported(logs)
        if refused:
            return Result(Ending.REFUSED, reason, USER_ERROR)
        outside = f"cut off after update {saved}: {self.asked or 'something'} ended the trainer first"
        how = f"the trainer ended with status {status}" if status else outside
        return Result(Ending.FAILED, reason or f"{how}{_last_words(logs, 'trainer')}", status or 1)

    def _command(self, role: Role, number: int) -> list[str]:
        if role.name == "retriever":
            search, local = self.recipe.env.search, self.machine.hosts[role.first_node] == LOOPBACK
            where = [
                "--host",
                LOOPBACK if local else "0.0.0.0",
                "--port",
                str(port(self._key, "retriever")),
                "--data",
                search.data,
            ]
            where += ["--key-file", str(self.run / f"attempt_{number}" / KEY_FILE)]
            return [
                self.python,
                "-m",
                "paw_hpc.cli.main",
                "data",
                "search",
                "serve",
                *([search.index] if search.index else []),
                *where,
            ]
        module = "paw_hpc.cluster.worker" if role.name == "trainer" else "paw_hpc.cluster.server"
        return [self.python, "-u", "-m", module, str(self.run)]

    def _environment(self, number: int) -> Mapping[str, str]:
        hosts = self.machine.hosts
        variables = {
            **fence.variable(self.run, number),
            INHERITED_KEY: str(self.run / f"attempt_{number}" / KEY_FILE),
            "MASTER_ADDR": hosts[0],
            "MASTER_PORT": str(port(self._key, "meeting")),
            "PYTHONUNBUFFERED": "1",
        }
        if (rollout := self.layout.rollout) is not None:
            variables["PAW_SERVERS"] = ",".join(self._servers(rollout))
        if (retriever := self.layout.retriever) is not None:
            variables[RETRIEVER] = f"http://{hosts[retriever.first_node]}:{port(self._key, 'retriever')}"
        if self.recipe.cluster.interface:
            variables |= dict.fromkeys(
                ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), self.recipe.cluster.interface
            )
        return variables

    def _servers(self, rollout: Role) -> list[str]:
        """Addresses, node after node in turn, so that neighbouring turns go to different nodes."""
        per_node, hosts = rollout.processes_per_node, self.machine.hosts
        # one machine in the place of several nodes
        together = rollout.nodes > 1 and len({hosts[node] for node in rollout.node_indices}) == 1
        offset = per_node if together else 0
        return [
            f"http://{hosts[node]}:{port(self._key, 'server', index + offset * (node - rollout.first_node))}"
            for index in range(per_node)
            for node in rollout.node_indices
        ]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(number: int, _: object) -> None:
            self.asked = self.asked or signal.Signals(number).name

        before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _reported(logs: Path) -> tuple[str, bool]:
    """The earliest failure that a trainer process wrote down, and whether it is the user's to put right."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in logs.glob("failed-*.json")]
    if not reports:
        return "", False
    earliest = min(reports, key=lambda report: report["time"])
    return earliest["reason"], earliest["refused"]


def _last_words(logs: Path, role: str) -> str:
    """What the role's latest log ends with, for a reason in one line."""
    files = sorted(logs.glob(f"{role}-*.log"), key=lambda path: path.stat().st_mtime)
    for path in reversed(files):
        lines = [
            line.strip()
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.strip()
        ]
        if lines:
            return f" ({shlex.quote(path.name)}: {lines[-1][:300]})"
    return ""
