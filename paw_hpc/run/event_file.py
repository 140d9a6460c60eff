"""What TensorBoard reads of a run: one event file per attempt.

TensorBoard's own classes write the format; its `EventFileWriter`, which names files by the clock alone, is
not used. TensorBoard reads the files of a folder in the order of their names, and an attempt's file begins
with an order to forget the updates that it plays again. So it must be named after those before it whatever
the clock says: by a clock that was set back it would come first, and the order in the older file would then
take away everything that was played since.
"""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from paw_hpc.system.storage import append

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class EventFile:
    """Writes scalars, in time that never goes back: not from an earlier attempt's to this one's, and not
    within it.

    Args:
        folder: TensorBoard's folder of the run, made if missing.
        start: the first update to come; what earlier files hold of it and later ones is not shown.

    Raises:
        OSError: the folder or the disk, here and in `write`.
    """

    def __init__(self, folder: Path, start: int) -> None:
        # a moment to import; readers of metrics must not pay for it
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._lead_s = max(now, _end(folder) + 1) - time.monotonic()
        name = f"events.out.tfevents.{int(self._now()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = open(folder / name, "xb", buffering=0)  # noqa: SIM115 (closed by close)
        self._add(Event(wall_time=self._now(), file_version="brain.Event:2"))
        self._add(Event(wall_time=self._now(), step=start, session_log=SessionLog(status=SessionLog.START)))

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Add the values of one update, by name."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self._add(Event(wall_time=self._now(), step=update, summary=summary))

    def close(self) -> None:
        """Nothing is pending."""
        self._file.close()

    def _now(self) -> float:
        return self._lead_s + time.monotonic()

    def _add(self, event: object) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())  # type: ignore[attr-defined]
        append(self._file, record.getvalue())


def _end(folder: Path) -> float:
    """Seconds since 1970 by the clocks that wrote the event files in a folder: when the last of them began,
    or was last written to. None there: 0."""
    ends = [0.0]
    for path in folder.iterdir():
        if match := _NAME.match(path.name):
            ends += [float(match.group(1)), path.stat().st_mtime]
    return max(ends)
