"""What a run leaves on the disk, as somebody else's program, a full disk or a hand may have changed it."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from paw_hpc.cluster import attempts
from paw_hpc.envs import outcomes
from paw_hpc.evaluation import results
from paw_hpc.evaluation.outcomes import judge
from paw_hpc.policy import checkpoint, checkpoint_folder
from paw_hpc.policy.convert import folder as model_folder
from paw_hpc.policy.convert.folder import INDEX, WEIGHTS, FolderReader
from paw_hpc.policy.convert.names import Piece
from paw_hpc.recipe import parse_recipe
from paw_hpc.run import changes, fence, metrics
from paw_hpc.study.report.runs import Run
from tests.fuzz import scratch
from tests.fuzz.harness import Target, judged
from tests.fuzz.inputs import as_json, damaged, documents, json_files, json_lines
from tests.report.synthetic import draw, evaluation

RECIPE = parse_recipe({"model": {"path": "some/model"}})
METRICS = [
    {"update": 0, "train/success": 0.5, "wm/loss": None},
    {"update": 1, "train/success": 1, "time/update_s": 2.5},
]
ATTEMPTS: list[Any] = [
    {"launched": "2026-01-01T00:00:00+00:00"},
    {
        "attempt": 1,
        "job": "4711",
        "nodes": ["a", "b"],
        "began": "2026-01-01T00:00:01+00:00",
        "updates_before": 0,
    },
    {"attempt": 1, "ended": "2026-01-01T00:09:00+00:00", "updates": 10, "how": "time limit"},
    {"attempt": 2, "job": "4711", "nodes": ["a"], "began": "2026-01-01T00:10:00+00:00", "updates_before": 10},
]
CHANGES = [
    {"key": "optimizer.lr", "old": 1e-6, "new": 2e-6, "update": 10},
    {"key": "updates", "old": 10, "new": 20, "update": None},
]


def _metrics(data: bytes) -> None:
    path = scratch.folder("metrics") / "metrics.jsonl"
    path.write_bytes(data)
    found = judged(metrics.read_metrics, path)
    if isinstance(found, list):
        run = Run(path, RECIPE, found, [])
        for name in {name for record in found for name in record}:
            run.series(name)


def _attempts(data: bytes) -> None:
    run = scratch.folder("attempts")
    attempts.folder(run).mkdir(exist_ok=True)
    (attempts.folder(run) / "attempts.jsonl").write_bytes(data)
    found = judged(attempts.history, run)
    if isinstance(found, list):
        for attempt in found:
            assert (
                isinstance(attempt.number, int)
                and all(isinstance(node, str) for node in attempt.nodes)
                and isinstance(attempt.how, str)
            )
        judged(attempts.check_progress, run, 2)


def _fence(data: bytes) -> None:
    run = scratch.emptied("fence")
    (run / fence.FILE).write_bytes(data)
    if isinstance(judged(fence.claim, run), int):
        (run / fence.FILE).write_bytes(data)
        judged(fence.check, run)


def _changes(data: bytes) -> None:
    run = scratch.folder("changes")
    (run / changes.FILE).write_bytes(data)
    found = judged(changes.read_changes, run)
    if isinstance(found, list):
        assert all(str(change).encode() for change in found)
        judged(changes.begin, run, 3)


STATE = {"weights": torch.zeros(3), "step": 4}
META = {"recipe": RECIPE.model_dump(mode="json"), "seed": 3}


def _checkpoint() -> tuple[Path, dict[str, Any]]:
    """A whole one, and its manifest."""
    folder = scratch.folder("checkpoint")
    path = checkpoint.latest(folder) if any(folder.iterdir()) else checkpoint.save(folder, 30, STATE, META)
    assert path is not None
    return path, json.loads((path / checkpoint_folder.MANIFEST).read_text())


def _manifest(data: bytes) -> None:
    path, _ = _MADE
    manifest = path / checkpoint_folder.MANIFEST
    before = manifest.read_bytes()
    try:
        manifest.write_bytes(data)
        judged(checkpoint.latest, path.parent)
        loaded = judged(checkpoint.load, path, RECIPE)
        if isinstance(loaded, tuple):
            checkpoint_folder.has_moved(loaded[1], RECIPE)
    finally:
        manifest.write_bytes(before)


_MADE = _checkpoint()


def _state(data: bytes) -> None:
    """The state's own bytes, under a manifest that vouches for them."""
    folder = scratch.emptied("state")
    path = folder / "update_000030"
    path.mkdir()
    (path / "state.pt").write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    checkpoint_folder.write_manifest(path, checkpoint.FORMAT, 30, {"state.pt": entry}, META)
    judged(checkpoint.load, path, RECIPE)


def _evaluation_files() -> list[Any]:
    """[summary, *lines] of an evaluation."""
    result = evaluation(draw(0, 3, 0.5), update=3, ce=0.5)
    folder = scratch.emptied("evaluation")
    summary = results.write_evaluation(folder, result)
    shares = {
        "transitions": 1,
        "tokens": 9,
        "token_share": 0.1,
        "cross_entropy": 0.2,
        "mae": 0.3,
        "clipped_mae": 0.4,
    }
    predicted = results.Prediction("own", "all", 4, 60, 0.5, (0.4, 0.6), 0.9, 0, None, None, None)
    content = json.loads(summary.read_text()) | {"noise": shares, "predictions": [asdict(predicted)]}
    return [content, *map(json.loads, summary.with_suffix(".jsonl").read_text().splitlines())]


def _evaluation(files: tuple[bytes, bytes]) -> None:
    folder = scratch.folder("evaluation")
    for ending, data in zip(("json", "jsonl"), files, strict=True):
        (folder / "evaluations" / f"valid_seen-u3.{ending}").write_bytes(data)
    found = judged(results.read_evaluations, folder)
    if isinstance(found, list):
        run = Run(folder, RECIPE, [], found)
        for each in found:
            assert isinstance(each.scored, bool) and f"{each.label} {each.panel}".encode()
            judged(run.last_evaluation, (each.panel, each.panel_checksum, each.temperature, each.protocol))
            if each.episodes:
                judged(results.mean_score, each.episodes)


OUTCOMES: list[Any] = [
    {
        "format": "paw-outcomes-1",
        "player": "theirs",
        "benchmark": "alfworld",
        "panel": "valid_seen",
        "panel_checksum": "abc",
        "tasks": 2,
    }
    | {"seed": 0, "update": 9, "temperature": 0.4, "rules": "50 steps", "environment_failures": 1},
    *(
        {
            "task_id": f"g{n // 2}",
            "task_type": "t",
            "repeat": n % 2,
            "seed": 1,
            "success": n > 1,
            "score": 0.5,
            "steps": 9,
            "invalid": 1,
            "return": 10.0,
        }
        for n in range(4)
    ),
]


def _outcomes(data: bytes) -> None:
    path = scratch.folder("outcomes") / "a.jsonl"
    path.write_bytes(data)
    found = judged(outcomes.read_outcomes, path)
    if isinstance(found, outcomes.Outcomes):
        result = judge(found)
        assert (
            0 <= result.interval[0] <= result.success <= result.interval[1] <= 1
            and 0 <= results.mean_score(result.episodes)[0] <= 1
        )
        assert f"{result.label} {result.panel} {found.player}".encode()


SHAPES = {"embed": (4, 3), "norm": (3,)}
WHOLE = save({"embed": torch.ones(4, 3), "norm": torch.ones(3)})
HEADER = json.loads(WHOLE[8 : 8 + struct.unpack("<Q", WHOLE[:8])[0]])


def _tensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + WHOLE[-60:]


def _folder(files: tuple[bytes, bytes | None]) -> None:
    folder = scratch.emptied("model")
    (folder / WEIGHTS).write_bytes(files[0])
    if files[1] is not None:
        (folder / INDEX).write_bytes(files[1])

    def read() -> None:
        with FolderReader(folder, SHAPES) as reader:
            _ = reader.dtypes
            for name, shape in SHAPES.items():
                assert reader.read(Piece(name, 0, shape[0]), 0).shape == shape

    judged(read)


INDICES = st.none() | json_files(
    {"metadata": {"total_size": 60}, "weight_map": {"embed": WEIGHTS, "norm": WEIGHTS}}
)
LONG_HEADERS = st.sampled_from([2**62, 2**40, 10**8, 0, 1]).map(lambda n: struct.pack("<Q", n) + WHOLE[8:])
EVALUATION = _evaluation_files()


def _trusts(kind: Any, value: Any) -> Any:
    """As a reader that takes the types for granted."""
    return value


def _beginning(kind: Any, line: Any) -> Any:
    """As if there were no lines but those of an attempt's beginning."""
    return attempts._Begin(line["attempt"], line["job"], line["nodes"], line["began"], line["updates_before"])


def _open_state(*_: Any, **__: Any) -> Any:
    """As unpickling that lets its own errors out, under a name that no `except Exception` knows."""
    raise KeyboardInterrupt


TARGETS = [
    Target(
        "metrics", json_lines(METRICS), _metrics,
        lambda patch: patch.setattr(metrics, "_records", lambda path: (("", json.loads(line)) for line in path.read_bytes().splitlines())),
    ),
    Target(
        "attempts", json_lines(ATTEMPTS), _attempts,
        lambda patch: patch.setattr(attempts, "checked", _beginning),
    ),
    Target("fence", json_files({"attempt": 3, "by": "job 4711 on node7"}), _fence, lambda patch: patch.setattr(fence, "checked", _trusts)),
    Target(
        "changes", json_files(CHANGES), _changes,
        lambda patch: patch.setattr(changes, "checked", _trusts),
    ),
    Target(
        "manifest", json_files(_MADE[1]), _manifest,
        lambda patch: patch.setattr(checkpoint_folder, "read_json", json.loads),
    ),
    Target(
        "state of a checkpoint", damaged(st.just((_MADE[0] / "state.pt").read_bytes())), _state,
        lambda patch: patch.setattr(torch, "load", _open_state), KeyboardInterrupt,
    ),
    Target(
        "evaluation", st.tuples(json_files(EVALUATION[0]), json_lines(EVALUATION[1:])), _evaluation,
        lambda patch: patch.setattr(results, "checked", _trusts),
    ),
    Target(
        "outcomes", json_lines(OUTCOMES), _outcomes,
        lambda patch: patch.setattr(outcomes, "_check", lambda path, whole: None),
    ),
    Target(
        "safetensors", st.tuples(damaged(documents(HEADER).map(as_json).map(_tensors)) | LONG_HEADERS, INDICES), _folder,
        lambda patch: patch.setattr(model_folder, "SafetensorError", KeyboardInterrupt),
    ),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_input_is_read_or_refused_in_one_line(target: Target) -> None:
    target.holds()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_planted_fault_is_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.finds_the_planted_fault(monkeypatch)
