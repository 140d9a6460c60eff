"""Checkpoints are whole or absent: through kills, tears, full disks, foreign files; and training goes on from
them as if it had not stopped."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pickle
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paw_hpc.policy import checkpoint
from paw_hpc.policy.checkpoint import latest, load, save
from paw_hpc.policy.checkpoint_folder import ever_saved
from paw_hpc.recipe import Recipe, parse_recipe
from paw_hpc.system.errors import CheckpointError, StorageError


def recipe(**changes: Any) -> Recipe:
    return parse_recipe({"model": {"path": "tiny"}} | changes)


def state(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((8, 3), value)}, "done": int(value)}


def value_of(path: Path | None) -> float:
    assert path is not None
    loaded, _ = load(path)
    assert loaded["done"] == int(loaded["model"]["w"][0, 0])
    return float(loaded["model"]["w"][0, 0])


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".saved")


# --- what goes in comes out ---


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer, np.random.Generator]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2), np.random.default_rng(5)

    def steps(
        model: torch.nn.Module, optimizer: torch.optim.Optimizer, rng: np.random.Generator, count: int
    ) -> list[float]:
        losses = []
        for _ in range(count):
            x = torch.from_numpy(rng.normal(size=(4, 6))).float()
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    model, optimizer, rng = fresh()
    steps(model, optimizer, rng, 3)
    everything = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": rng.bit_generator.state,
    }
    path = save(tmp_path, 3, everything, {})
    uninterrupted = steps(model, optimizer, rng, 4)

    model, optimizer, rng = fresh()
    without_load = steps(model, optimizer, rng, 4)
    loaded, meta = load(path)
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    torch.set_rng_state(loaded["torch_rng"])
    rng.bit_generator.state = loaded["numpy_rng"]
    assert meta == {"update": 3}
    assert steps(model, optimizer, rng, 4) == uninterrupted != without_load


def test_values_keep_type_dtype_and_bits(tmp_path: Path) -> None:
    tree: dict[Any, Any] = {
        "bf16": torch.randn(3, dtype=torch.float32).bfloat16(),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3)[:, ::-1],
        "numbers": [1, 0.1, True, None, "text", 2**127 + 1, float("inf")],
        "python_rng": random.Random(3).getstate(),
        "legacy_numpy_rng": list(np.random.RandomState(3).get_state()),
        7: {"step": torch.tensor(1.0)},
    }
    loaded: dict[Any, Any] = load(save(tmp_path, 0, tree, {}))[0]
    for name in ("bf16", "flags", "scalar", "empty"):
        assert loaded[name].dtype == tree[name].dtype and torch.equal(loaded[name], tree[name])
    assert loaded["array"].dtype == np.uint32 and (loaded["array"] == tree["array"]).all()
    assert loaded["numbers"] == tree["numbers"] and [type(v) for v in loaded["numbers"]] == [
        type(v) for v in tree["numbers"]
    ]
    random.Random().setstate(loaded["python_rng"])
    assert loaded["python_rng"] == tree["python_rng"]
    assert (loaded["legacy_numpy_rng"][1] == tree["legacy_numpy_rng"][1]).all()
    assert loaded[7]["step"] == 1.0


def test_tied_weights_stay_tied_and_a_part_of_a_tensor_costs_its_own_size(tmp_path: Path) -> None:
    weight = torch.randn(50, 4)
    small = save(tmp_path / "small", 0, {"part": torch.randn(1_000_000)[:10]}, {})
    assert (small / "state.pt").stat().st_size < 10_000
    loaded, _ = load(save(tmp_path / "tied", 0, {"embed": weight, "head": weight}, {}))
    assert loaded["embed"].data_ptr() == loaded["head"].data_ptr()


class Stranger:
    pass


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ({"a": {"b": [1, Stranger()]}}, r"state\.a\.b\[1\].*Stranger"),
        ({"a": {(1, 2): 3}}, r"state\.a: mapping keys"),
        ({"a": np.array([Stranger()])}, r"state\.a.*ndarray"),
        ({"a": {1, 2}}, r"state\.a.*set"),
    ],
)
def test_nothing_that_would_need_pickle_is_saved(tmp_path: Path, bad: dict[str, Any], where: str) -> None:
    with pytest.raises(TypeError, match=where):
        save(tmp_path, 1, bad, {})
    assert latest(tmp_path) is None


# --- which one is taken, which ones are kept ---


def test_the_newest_is_taken_and_the_last_k_are_kept(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None
    for update in (5, 10, 15, 1_000_000):
        save(tmp_path, update, state(update), {}, keep=2)
    assert names(tmp_path) == ["update_000015", "update_1000000"]
    assert value_of(latest(tmp_path)) == 1_000_000
    with pytest.raises(ValueError, match="keep"):
        save(tmp_path, 1, state(1), {}, keep=0)


def test_an_update_saved_again_replaces_the_earlier_save(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        save(tmp_path, 10, state(value), {}, keep=1)
        assert value_of(latest(tmp_path)) == value
        assert len(names(tmp_path)) == 1


# --- kills ---


class Killed(BaseException):
    """Not an Exception: nothing may clean up after it, as nothing can after SIGKILL."""


def with_kill_at(monkeypatch: pytest.MonkeyPatch, moment: int, action: Callable[[], Any]) -> bool:
    """Run `action` and die right before its `moment`-th change of the disk. True: it died."""
    calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return real(*arguments, **options)

        return call

    real_save = torch.save

    # torch.save's hundred small ones would all be the same moment
    def save_in_two_writes(value: Any, file: Any) -> None:
        buffer = io.BytesIO()
        real_save(value, buffer)
        data = buffer.getvalue()
        file.write(data[: len(data) // 2])
        file.write(data[len(data) // 2 :])

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_in_two_writes)
        for name in ("replace", "fsync", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(checkpoint._HashedFile, "write", dying(checkpoint._HashedFile.write))
        patch.setattr(json, "dump", dying(json.dump))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        try:
            action()
        except Killed:
            return True
    return False


@pytest.mark.parametrize(
    ("update", "keep"), [(2, 1), (2, 2), (1, 1)], ids=["next", "next, two kept", "same update again"]
)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int, keep: int
) -> None:
    seen = set()
    for moment in range(200):
        folder = tmp_path / str(moment)
        save(folder, 1, state(1), {}, keep=keep)
        died = with_kill_at(
            monkeypatch, moment, lambda folder=folder: save(folder, update, state(9), {}, keep=keep)
        )  # type: ignore[misc]
        found = value_of(latest(folder))
        assert found in (1, 9)
        seen.add((died, found))
        save(folder, 3, state(3), {}, keep=1)
        assert value_of(latest(folder)) == 3 and names(folder) == ["update_000003"], (
            "leftovers of the killed save"
        )
        if not died:
            break
    assert not died and moment > 8
    assert seen == {(True, 1), (True, 9), (False, 9)}


def test_sigkill_never_loses_a_checkpoint_that_was_acknowledged(tmp_path: Path) -> None:
    rng = random.Random(0)
    done = 0
    for _ in range(6):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for update in range(done + 1, done + 10_000):
                    save(tmp_path, update, state(update), {}, keep=1)
                    os.write(write, b"%8d" % update)
            finally:
                os._exit(1)
        os.close(write)
        acknowledged = int(os.read(read, 8))  # at least one, so that the kill falls among saves
        signal.sigtimedwait([], rng.uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while data := os.read(read, 8):
            acknowledged = int(data)
        os.close(read)
        found = latest(tmp_path)
        assert value_of(found) >= acknowledged > done
        done = int(value_of(found))


def test_ctrl_c_while_saving_stays_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.FileIO):
        def write(self, data: Any) -> int:
            raise KeyboardInterrupt

    save(tmp_path, 1, state(1), {})
    monkeypatch.setattr(checkpoint, "open", lambda path, *_, **__: Interrupted(path, "w"), raising=False)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, state(2), {})
    monkeypatch.undo()
    assert value_of(latest(tmp_path)) == 1


# --- a full disk ---


class SmallDisk(io.FileIO):
    """A file on a disk with room for `room` more bytes."""

    room = 0

    def write(self, data: Any) -> int:
        if len(data) > SmallDisk.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        SmallDisk.room -= len(data)
        return super().write(data) or 0


@pytest.mark.parametrize("room", [0, 100, 1500])
def test_a_full_disk_keeps_the_previous_checkpoint_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    save(tmp_path, 1, state(1), {}, keep=1)
    real = builtins.open

    def small(path: Any, mode: str = "r", **options: Any) -> Any:
        return SmallDisk(path, "w") if mode == "wb" else real(path, mode, **options)

    SmallDisk.room = room
    monkeypatch.setattr(checkpoint, "open", small, raising=False)
    with pytest.raises(StorageError, match="no space left on the disk") as caught:
        save(tmp_path, 2, state(2), {}, keep=1)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["update_000001"] and value_of(latest(tmp_path)) == 1
    SmallDisk.room = 10**9  # the control: with room, the same way of writing works
    save(tmp_path, 2, state(2), {}, keep=1)
    assert value_of(latest(tmp_path)) == 2


# --- tears and strangers ---


def cut(path: Path) -> None:
    data = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(data[:-1])


def flip(path: Path) -> None:
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(bytes(data))


def rewrite(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (cut, "torn: state.pt has"),
    "flipped bit": (flip, "wrong checksum"),
    "no state": (lambda p: (p / "state.pt").unlink(), r"state\.pt is missing"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), r"manifest\.json is missing"),
    "empty manifest": (lambda p: (p / "manifest.json").write_text(""), "cannot be understood"),
    "foreign manifest": (lambda p: (p / "manifest.json").write_text("{}"), "cannot be understood"),
    "other format": (lambda p: rewrite(p, format="paw_hpc checkpoint 9"), "format 'paw_hpc checkpoint 9'"),
    "no files": (lambda p: rewrite(p, files={}), "cannot be understood"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason_and_refused_by_name(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    hurt, reason = DAMAGES[damage]
    save(tmp_path, 1, state(1), {})
    newest = save(tmp_path, 2, state(2), {})
    assert latest(tmp_path) == newest and not caplog.records
    hurt(newest)
    assert value_of(latest(tmp_path)) == 1
    assert len(caplog.records) == 1 and str(newest) in caplog.text
    with pytest.raises(CheckpointError, match=reason):
        load(newest)
    hurt(tmp_path / "update_000001")
    with pytest.raises(
        CheckpointError, match=rf"none of its 2 checkpoints can be used \(the newest: .*{reason}"
    ):
        latest(tmp_path)


def test_a_directory_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    save(tmp_path / "run", 1, state(1), {})
    (tmp_path / "run").rename(tmp_path / "away")
    assert latest(tmp_path / "run") is None and not ever_saved(tmp_path / "run")
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match=r"run: its checkpoints cannot be read \(Not a directory\)"):
        latest(tmp_path / "run")


def test_that_there_was_one_is_remembered(tmp_path: Path) -> None:
    assert not ever_saved(tmp_path)
    shutil.rmtree(save(tmp_path, 1, state(1), {}))
    assert ever_saved(tmp_path) and latest(tmp_path) is None


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "update_file").write_text("")
    (tmp_path / "update_best").mkdir()
    assert latest(tmp_path) is None
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "update_file"):
        with pytest.raises(CheckpointError):
            load(path)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["BOMB"],)


def test_a_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = save(tmp_path, 1, state(1), {})
    data = pickle.dumps(Bomb())
    (path / "state.pt").write_bytes(data)
    import hashlib

    rewrite(path, files={"state.pt": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})
    with pytest.raises(CheckpointError, match="not a state that paw_hpc wrote"):
        load(path)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(data)  # the control: it would have
    assert (tmp_path / "exploded").exists()


def test_another_recipes_checkpoint_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    path = save(tmp_path, 1, state(1), {"recipe": recipe().model_dump(mode="json")})
    _, meta = load(path, recipe(updates=999, checkpoint={"keep": 5}))
    assert meta["update"] == 1 and meta["recipe"]["updates"] == 150
    with pytest.raises(CheckpointError, match=r"another recipe \(wm\.rho: 0\.2 -> 0\.5\)"):
        load(path, recipe(wm={"rho": 0.5}))
    with pytest.raises(CheckpointError, match="which recipe"):
        load(save(tmp_path, 2, state(2), {}), recipe())
