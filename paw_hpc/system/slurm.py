"""Slurm's commands: every call of them, and their errors in one line."""

from __future__ import annotations

import re
import subprocess
import time

from paw_hpc.system.errors import UserError

COMMAND_TIMEOUT_S = 60.0
RETRY_FOR_S = 180.0
"""slurmctld restarts under running jobs; meanwhile its commands fail."""
RETRY_EVERY_S = 3.0
_AWAY = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Transport endpoint",
    "Zero Bytes were transmitted",
)


class SlurmError(UserError):
    """A Slurm command that failed, with what it said."""

    def last_words(self) -> str:
        """The end of what it said: Slurm's commands name the reason last, after lines about every way that
        they tried."""
        return re.split(r"\b\w+: (?:error|fatal): ", str(self))[-1].strip()


def ask(*command: str, retry: bool = True) -> str:
    """Standard output of a Slurm command.

    Args:
        retry: try again for three minutes while slurmctld is away.

    Raises:
        SlurmError: it failed; what it said in one line.
    """
    deadline = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        except FileNotFoundError:
            raise SlurmError(
                f"{command[0]}: not found: this machine has no Slurm; use a login node, or --executor local"
            ) from None
        except subprocess.TimeoutExpired:
            said = f"no answer in {COMMAND_TIMEOUT_S:.0f} s"
        else:
            if done.returncode == 0:
                return done.stdout
            said = " ".join((done.stderr or done.stdout).split()) or f"status {done.returncode}"
        away = any(words in said for words in _AWAY) or said.startswith("no answer")
        if not (retry and away and time.monotonic() < deadline):
            raise SlurmError(f"{command[0]}: {said}")
        time.sleep(RETRY_EVERY_S)


def hostnames(nodelist: str) -> list[str]:
    """Names of a node list such as node[1-3]."""
    return ask("scontrol", "show", "hostnames", nodelist).split()
