"""One kept file of episodes, read a part at a time: its episodes, their steps, what surprised the policy
most."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paw_hpc.evaluation.episodes import folder
from paw_hpc.evaluation.episodes.copier import copied_tokens
from paw_hpc.evaluation.episodes.folder import EpisodeFile
from paw_hpc.evaluation.episodes.spelling import pieces

SURPRISES = 40
"""Tokens of a file that are listed as its most surprising ones."""
_LOOKED_AT = 100 * SURPRISES
"""The least probable tokens of a file, among which these are chosen."""
_BEFORE, _AFTER = 12, 6
"""Tokens around one that are shown with it."""
_EPISODE = ("group", "member", "task_id", "task_type", "seed", "steps", "success", "score", "episode_return")


_STEP = ("step", "valid", "selected", "advantage", "entropy", "observation_logp")


_SHOWN = (
    "step",
    "action",
    "reward",
    "valid",
    "weight_version",
    "entropy",
    "advantage",
    "selected",
    "wm_lambda",
    "wm_weight",
    "prompt",
    "predicted",
)


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """One kept episode. Fields of schema.STEP, and what follows from them."""

    group: int
    member: int
    task_id: str
    task_type: str
    seed: str
    """As text: JavaScript's numbers have 53 bits."""
    steps: int
    success: bool
    score: float
    episode_return: float
    invalid: int
    """Steps."""
    selected: int | None
    advantage: float | None
    """Of the first step: where nothing is subtracted from single steps, that of all."""
    surprise: float | None
    """Nats per token of the next observations, where the policy was asked about them."""
    first_row: int
    """Of the file."""


class KeptFile:
    """One file of kept episodes, read in parts.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, file: EpisodeFile) -> None:
        self.file = file
        self.path = file.path

    @functools.cached_property
    def episodes(self) -> list[EpisodeSummary]:
        """In the order of groups and members."""
        table = folder.read(self.path, [*_EPISODE, *_STEP])
        column = {name: table[name].to_pylist() for name in (*_EPISODE, "valid", "selected", "advantage")}
        places = list(zip(column["group"], column["member"], strict=True))
        starts = [n for n, place in enumerate(places) if n == 0 or place != places[n - 1]]
        nats, tokens = _per_row(table["observation_logp"])
        found = []
        for start, end in pairwise([*starts, len(places)]):
            selected = [flag for flag in column["selected"][start:end] if flag is not None]
            count = int(tokens[start:end].sum())
            found.append(
                EpisodeSummary(
                    **{name: column[name][start] for name in _EPISODE if name != "seed"},
                    seed=str(column["seed"][start]),
                    invalid=sum(not valid for valid in column["valid"][start:end]),
                    selected=sum(selected) if selected else None,
                    advantage=column["advantage"][start],
                    surprise=float(nats[start:end].sum()) / count if count else None,
                    first_row=start,
                )
            )
        return found

    @functools.cached_property
    def by_task(self) -> dict[str, list[EpisodeSummary]]:
        """Episodes by task id."""
        found: dict[str, list[EpisodeSummary]] = {}
        for episode in self.episodes:
            found.setdefault(episode.task_id, []).append(episode)
        return found

    def episode(self, group: int, member: int) -> EpisodeSummary | None:
        return next((e for e in self.episodes if (e.group, e.member) == (group, member)), None)

    def steps(self, episode: EpisodeSummary) -> list[dict[str, Any]]:
        """The steps of an episode, whole, ready to be shown (see `_shown`)."""
        return _all_shown(self._rows(episode.first_row, self._end(episode)))

    def steps_of(self, episodes: Iterable[EpisodeSummary]) -> Iterator[list[dict[str, Any]]]:
        """The steps of each of many episodes: the file is read once."""
        table = folder.read(self.path)
        for episode in episodes:
            yield _all_shown(table.slice(episode.first_row, episode.steps))

    def _end(self, episode: EpisodeSummary) -> int:
        later = [e.first_row for e in self.episodes if e.first_row > episode.first_row]
        return min(later) if later else folder.read(self.path, ["step"]).num_rows

    def _rows(self, first: int, end: int) -> pa.Table:
        """Reads the groups of rows that hold them, and no more."""
        with _reading(self.path) as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            begins = np.cumsum([0, *sizes])
            wanted = [n for n in range(len(sizes)) if begins[n] < end and begins[n + 1] > first]
            if not wanted:
                return file.schema_arrow.empty_table()
            return file.read_row_groups(wanted).slice(first - int(begins[wanted[0]]), end - first)

    def search(self, text: str) -> list[tuple[int, int, int]]:
        """(group, member, step) of every step in whose action, response or next observation a text stands, in
        any case of letters."""
        found = []
        with _reading(self.path) as file:
            for part in file.iter_batches(
                columns=["group", "member", "step", "action", "response", "observation"]
            ):
                hits = functools.reduce(
                    pc.or_,
                    (
                        pc.match_substring(part[name], text, ignore_case=True)
                        for name in ("action", "response", "observation")
                    ),
                )
                chosen = part.filter(hits)
                found += list(
                    zip(*(chosen[name].to_pylist() for name in ("group", "member", "step")), strict=True)
                )
        return found

    @functools.cached_property
    def surprises(self) -> list[dict[str, Any]]:
        """The least probable tokens of next observations: where they are, what they say, and the text around
        them. One that comes again behind the same words is shown once, where it was least probable; `times`
        says how often it is among the tokens looked at."""
        columns = ["group", "member", "step", "action", "observation", "observation_ends", "observation_logp"]
        with _reading(self.path) as file:
            least = [found for part in file.iter_batches(columns=columns) for found in _least_probable(part)]
        shown: dict[tuple[str, str], dict[str, Any]] = {}
        for logp, at, row in sorted(least, key=lambda found: found[0])[:_LOOKED_AT]:
            tokens = pieces(row["observation"], row["observation_ends"])
            before = "".join(tokens[max(0, at - _BEFORE) : at])
            if (again := shown.get((before, tokens[at]))) is not None:
                again["times"] += 1
                continue
            around = {
                "before": before,
                "token": tokens[at],
                "after": "".join(tokens[at + 1 : at + 1 + _AFTER]),
            }
            place = {name: row[name] for name in ("group", "member", "step", "action")}
            shown[before, tokens[at]] = place | around | {"p": _short(math.exp(logp)), "at": at, "times": 1}
        return list(shown.values())[:SURPRISES]


class _reading:
    """Inside, a Parquet file; what goes wrong there is a DataError that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> pq.ParquetFile:
        folder.read(self._path, ["step"])  # of our kind, and of a version that we know
        self._file = pq.ParquetFile(self._path)
        return self._file

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _per_row(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(nats, tokens) of each row of a column of log-probs; 0 and 0 for null."""
    nats, tokens = [], []
    for chunk in column.chunks:
        lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        values = chunk.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        sums = np.cumsum([0.0, *values])
        ends = np.cumsum(lengths)
        nats.append(-(sums[ends] - sums[ends - lengths]))
        tokens.append(lengths)
    return np.concatenate(nats or [np.zeros(0)]), np.concatenate(tokens or [np.zeros(0, dtype=np.int64)])


def _least_probable(part: pa.RecordBatch) -> list[tuple[float, int, dict[str, Any]]]:
    """(log-prob, place in the observation, row) of the _LOOKED_AT least probable tokens, in the order of
    their probability."""
    asked = part.filter(pc.greater(pc.fill_null(pc.list_value_length(part["observation_logp"]), 0), 0))
    lengths = pc.list_value_length(asked["observation_logp"]).to_numpy(zero_copy_only=False)
    logp = asked["observation_logp"].flatten().to_numpy(zero_copy_only=False)
    chosen = np.argsort(logp, kind="stable")[:_LOOKED_AT]
    ends = np.cumsum(lengths)
    rows, places = np.unique(np.searchsorted(ends, chosen, side="right"), return_inverse=True)
    found = asked.take(pa.array(rows)).drop_columns(["observation_logp"]).to_pylist()
    begins = (ends - lengths)[rows]
    return [
        (float(logp[at]), int(at - begins[place]), found[place])
        for at, place in zip(chosen, places, strict=True)
    ]


def _all_shown(rows: pa.Table) -> list[dict[str, Any]]:
    steps = rows.to_pylist()
    return [_shown(row, steps[n - 1] if n else None) for n, row in enumerate(steps)]


def _shown(row: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """One step: texts as the pieces of their tokens, probabilities without their logarithm, and what a copier
    of the previous observation knew."""
    logp, old = row["observation_logp"], row["old_logp"] or row["behaviour_logp"]
    hits = None
    if before is not None and before["observation_ids"]:
        hits = (
            copied_tokens(*(np.asarray(each["observation_ids"], dtype=np.int32) for each in (before, row)))
            .astype(int)
            .tolist()
        )
    return {name: row[name] for name in _SHOWN} | {
        "response": pieces(row["response"], row["response_ends"]),
        "response_p": [_short(math.exp(v)) for v in old],
        "response_entropy": None
        if row["token_entropy"] is None
        else [_short(v) for v in row["token_entropy"]],
        "observation": pieces(row["observation"], row["observation_ends"]),
        "observation_p": None if logp is None else [_short(math.exp(v)) for v in logp],
        "silenced": None if row["silenced"] is None else [int(flag) for flag in row["silenced"]],
        "copied": hits,
    }


def _short(value: float) -> float:
    return float(f"{value:.3g}")
