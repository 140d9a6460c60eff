"""Whole files, one writer, a bound, any number of readers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paw_hpc.evaluation.episodes import folder
from paw_hpc.evaluation.episodes.folder import EpisodeFolder, find, read
from paw_hpc.evaluation.episodes.schema import STEP, VERSION_KEY
from paw_hpc.run import fence
from paw_hpc.system.errors import DataError
from tests.episodes import made


def names(run: Path) -> list[str]:
    return [file.key for file in find(run)]


def test_files_come_back_as_they_were_written_in_the_order_of_play(tmp_path: Path) -> None:
    writer, rows = EpisodeFolder(tmp_path, made.ALL), made.rows()
    for number in (0, 1, 2, 11):
        assert writer.write_update(number, rows) == {
            "episodes/steps": rows.num_rows,
            "episodes/bytes": (tmp_path / f"episodes/update_{number:06d}.parquet").stat().st_size,
            "episodes/dropped_files": 0,
        }
    writer.write_evaluation(2, "a label/with: more", rows)
    (tmp_path / "episodes" / "of-somebody-else.parquet").write_bytes(b"")
    assert names(tmp_path) == [
        "update_000000",
        "update_000001",
        "eval_000002_a-label-with--more",
        "update_000002",
        "update_000011",
    ]
    found = read(find(tmp_path)[0].path)
    assert found.equals(rows) and found.schema.equals(STEP)
    assert read(find(tmp_path)[0].path, ["step", "prompt"]).column_names == ["step", "prompt"]


def test_other_programs_load_them_in_one_line(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    EpisodeFolder(tmp_path, made.ALL).write_update(0, made.rows())
    frame = pandas.read_parquet(tmp_path / "episodes")
    assert list(frame.columns) == STEP.names and len(frame) == made.rows().num_rows


def test_the_same_experience_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        EpisodeFolder(tmp_path / name, made.ALL).write_update(4, made.rows(4))
    first, second = (find(tmp_path / name)[0].path.read_bytes() for name in ("a", "b"))
    assert first == second


def test_the_oldest_updates_are_dropped_first_and_evaluations_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = made.rows()
    writer = EpisodeFolder(tmp_path / "free", made.ALL)
    size = int(writer.write_update(0, rows)["episodes/bytes"])
    writer = EpisodeFolder(tmp_path / "run", 3 * size + size // 2)
    writer.write_evaluation(0, "start", rows)
    with caplog.at_level("INFO", logger=folder.__name__):
        dropped = [writer.write_update(number, rows)["episodes/dropped_files"] for number in range(5)]
    assert names(tmp_path / "run") == ["eval_000000_start", "update_000000", "update_000004"]
    assert (
        dropped == [0, 0, 1, 1, 1]
        and "update_000001 were dropped, to stay within episodes.max_megabytes" in caplog.text
    )
    writer.write_evaluation(5, "end", rows)
    writer.write_evaluation(5, "again", rows)
    assert names(tmp_path / "run") == ["eval_000000_start", "eval_000005_again", "eval_000005_end"]
    tight = EpisodeFolder(tmp_path / "run", size // 2)
    tight.write_evaluation(6, "last", rows)
    assert names(tmp_path / "run") == [], "the bound holds for the newest, too"


def test_a_resumed_run_ends_with_the_files_of_an_uninterrupted_one_also_at_the_bound(tmp_path: Path) -> None:
    size = int(EpisodeFolder(tmp_path / "free", made.ALL).write_update(0, made.rows())["episodes/bytes"])

    def play(run: Path, *attempts: range) -> dict[str, bytes]:
        for updates in attempts:
            writer = EpisodeFolder(run, 4 * size)
            writer.begin(updates.start)
            for number in updates:
                writer.write_update(number, made.rows(number, seed=number))
        return {file.key: file.path.read_bytes() for file in find(run)}

    straight = play(tmp_path / "straight", range(9))
    resumed = play(tmp_path / "resumed", range(7), range(4, 9))
    assert resumed == straight and 2 <= len(straight) < 9
    assert play(tmp_path / "shorter", range(7), range(4, 5)).keys() <= {
        f"update_{n:06d}" for n in range(5)
    }, "what is played again is removed first"


def test_a_writer_that_was_replaced_writes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    fence.claim(run)
    writer = EpisodeFolder(run, made.ALL)
    writer.write_update(0, made.rows())
    (run / fence.FILE).write_text('{"attempt": 9, "by": "job 2 on node3"}\n')
    for write in (
        lambda: writer.write_update(1, made.rows()),
        lambda: writer.write_evaluation(1, "x", made.rows()),
        lambda: writer.begin(0),
    ):
        with pytest.raises(fence.StaleAttempt, match="attempt 9"):
            write()
    assert [path.name for path in (run / "episodes").iterdir()] == ["update_000000.parquet"]


def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    torn, other, newer = (tmp_path / f"update_{n:06d}.parquet" for n in range(3))
    torn.write_bytes(b"PAR1 and then nothing")
    pq.write_table(pa.table({"a": [1]}), other)
    pq.write_table(made.rows().replace_schema_metadata({VERSION_KEY: b"2"}), newer)
    for path, said in (
        (torn, "cannot be read"),
        (other, "not kept episodes"),
        (newer, "version 2, and this paw_hpc knows those up to 1"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            read(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


WRITES = """
from paw_hpc.evaluation.episodes.folder import EpisodeFolder, read
rows = read(run / "rows.parquet")
for number in range(10**6):
    EpisodeFolder(run, 10**9).write_update(number % 50, rows)
"""
READS = """
import time
from paw_hpc.evaluation.episodes.folder import find, read
end, expected, count = time.monotonic() + 2, read(run / "rows.parquet").num_rows, 0
while time.monotonic() < end or not count:
    for file in find(run):
        assert read(file.path).num_rows == expected, file
        count += 1
print(count)
"""


def test_two_read_while_one_writes_and_a_kill_leaves_whole_files(tmp_path: Path) -> None:
    rows = made.rows()
    pq.write_table(rows, tmp_path / "rows.parquet")

    def start(program: str) -> subprocess.Popen[str]:
        begin = f"from pathlib import Path\nrun = Path({str(tmp_path)!r})\n"
        return subprocess.Popen(
            [sys.executable, "-c", begin + program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    writer, readers = start(WRITES), [start(READS) for _ in range(2)]
    found = [reader.communicate(timeout=200) for reader in readers]
    assert all(int(count) > 0 for count, _ in found), found
    assert writer.poll() is None, writer.communicate()
    writer.kill()
    writer.communicate()
    assert find(tmp_path) and {read(file.path).num_rows for file in find(tmp_path)} == {rows.num_rows}
    (tmp_path / "episodes" / ".update_000003.parquet.tmp").write_bytes(b"half")
    EpisodeFolder(tmp_path, made.ALL).begin(1)
    assert [path.name for path in (tmp_path / "episodes").iterdir()] == ["update_000000.parquet"]
