"""What each of four gloo ranks does in `test_megatron_checkpoint`. `FOLDER/model` holds the initial
policy."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from paw_hpc.objective.plan import plan
from paw_hpc.policy.megatron import checkpoint, states
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.policy.megatron.policy import MegatronPolicy
from paw_hpc.recipe import Recipe
from paw_hpc.system.errors import CheckpointError, StorageError
from tests.factories import random_pool, tiny_recipe
from tests.processes import Case

LAYOUTS = {
    "TP2 x DP2": Layout(tensor=2, data=2),
    "DP4": Layout(data=4),
    "PP2 x DP2": Layout(pipeline=2, data=2),
    "TP2 x PP2, sequence parallel": Layout(tensor=2, pipeline=2, sequence=True),
    "PP2 interleaved x DP2": Layout(pipeline=2, virtual=2, data=2),
    "TP2 x CP2": Layout(tensor=2, context=2),
}
FIRST = LAYOUTS["TP2 x DP2"]
WRITTEN = "from TP2 x DP2"
"""The checkpoint of update 1 that other layouts, and one process, go on from."""


def recipe(folder: Path, **dotted: Any) -> Recipe:
    options = {
        "model.tiny": None,
        "model.tokenizer": None,
        "model.path": str(folder / "model"),
        "model.device": "cpu",
    }
    # An eps of a gradient's size: with the usual one AdamW makes a step of full length of a gradient that is
    # rounding, another one in each layout.
    return tiny_recipe(
        **(options | {"optimizer.lr": 1e-2, "optimizer.eps": 1e-2, "algorithm.kl_coefficient": 0.1} | dotted)
    )


def policy(layout: Layout, folder: Path, **dotted: Any) -> MegatronPolicy:
    layout.open()
    return MegatronPolicy(recipe(folder, **dotted), layout)


def update(trained: MegatronPolicy, number: int) -> dict[str, float]:
    """One update on experience that is a function of its number; metrics less wall-clock times."""
    pool = random_pool(number)
    metrics = trained.update(plan(pool, trained.score(pool), trained.recipe, number).batch, number)
    return {
        name: metrics[name]
        for name in ("loss", "policy_loss", "wm_loss", "grad_norm", "critic_grad_norm", "value_loss")
        if name in metrics
    }


def save(trained: MegatronPolicy, directory: Path, done: int, *, keep: int = 2, wait: bool = True) -> None:
    trained.save(
        directory,
        done,
        {"recipe": trained.recipe.model_dump(mode="json"), "update": done},
        keep=keep,
        wait=wait,
    )


def everything(trained: MegatronPolicy) -> dict[str, torch.Tensor]:
    """Copies of this rank's weights, masters and moments of policy and critic."""
    found: dict[str, torch.Tensor] = {}
    for name, model in [("policy", trained.trained)] + (
        [("critic", trained.critic)] if trained.critic else []
    ):
        for i, chunk in enumerate(model.models):
            found |= {f"{name}.{i}.{key}": value.detach().clone() for key, value in chunk.named_parameters()}
        for i, part in enumerate(states._parts(model.optimizer)):
            masters = [p for group in part.optimizer.param_groups for p in group["params"]]
            for j, master in enumerate(masters):
                found |= {
                    f"{name}.optimizer.{i}.{j}.{key}": value.clone()
                    for key, value in part.optimizer.state[master].items()
                }
                found[f"{name}.optimizer.{i}.{j}"] = master.detach().clone()
    return found


def same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def names(directory: Path) -> list[str]:
    dist.barrier()
    found = sorted(path.name for path in directory.iterdir() if path.name != ".saved")
    dist.barrier()  # before another rank changes it
    return found


@dataclass(frozen=True)
class ResumedEqualsStraight:
    """Bit for bit."""

    name: str
    layout: Layout
    options: dict[str, Any]

    @property
    def __name__(self) -> str:
        return f"resumed equals straight: {self.name}"

    def __call__(self, rank: int, folder: Path) -> None:
        directory = folder / f"straight {self.name}"
        straight = policy(self.layout, folder, **self.options)
        update(straight, 0)
        # the updates that follow change the tensors that are being written
        save(straight, directory, 1, wait=False)
        metrics = [update(straight, number) for number in (1, 2)]
        expected = everything(straight)
        self.layout.close()
        without = policy(self.layout, folder, **self.options)
        straight._checkpoints.finish()
        fresh = [update(without, number) for number in (1, 2)]
        self.layout.close()
        resumed = policy(self.layout, folder, **self.options)
        assert resumed.resume(directory) == 1
        assert [update(resumed, number) for number in (1, 2)] == metrics != fresh
        assert same(everything(resumed), expected) and not same(everything(without), expected)
        self.layout.close()


STRAIGHT = [
    ResumedEqualsStraight(*each)
    for each in (
        ("float32", FIRST, {}),
        ("bfloat16", FIRST, {"model.dtype": "bfloat16"}),
        ("critic", LAYOUTS["PP2 x DP2"], {"algorithm.name": "ppo"}),
        ("interleaved", LAYOUTS["PP2 interleaved x DP2"], {"megatron.distributed_optimizer": False}),
        (
            "both",
            LAYOUTS["TP2 x PP2, sequence parallel"],
            {"megatron.distributed_optimizer": False, "model.dtype": "bfloat16"},
        ),
    )
]


def a_checkpoint_is_written(rank: int, folder: Path) -> None:
    trained = policy(FIRST, folder)
    update(trained, 0)
    update(trained, 1)
    save(trained, folder / WRITTEN, 2)
    expected = [update(trained, number) for number in (2, 3)]
    FIRST.close()
    if rank == 0:
        torch.save(expected, folder / "expected.pt")


@dataclass(frozen=True)
class GoesOnFromIt:
    """In another layout, or in the same."""

    name: str

    @property
    def __name__(self) -> str:
        return f"goes on: {self.name}"

    def __call__(self, rank: int, folder: Path) -> None:
        layout = LAYOUTS[self.name]
        resumed = policy(layout, folder, **{"megatron.tensor_parallel": layout.tensor})
        assert resumed.resume(folder / WRITTEN) == 2
        assert_close([update(resumed, number) for number in (2, 3)], torch.load(folder / "expected.pt"))
        layout.close()


def uneven_stages_go_on_in_other_layouts(rank: int, folder: Path) -> None:
    """Two ranks, five layers in FOLDER/model."""
    uneven = Layout(pipeline=2)
    trained = policy(uneven, folder)
    update(trained, 0)
    update(trained, 1)
    save(trained, folder / "from uneven", 2)
    expected = [update(trained, number) for number in (2, 3)]
    uneven.close()
    for layout in (uneven, Layout(pipeline=2, virtual=2), Layout(tensor=2)):
        resumed = policy(layout, folder, **{"megatron.tensor_parallel": layout.tensor})
        assert resumed.resume(folder / "from uneven") == 2
        assert_close([update(resumed, number) for number in (2, 3)], expected)
        layout.close()


def assert_close(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Of the first update, which a resumed run has not changed yet: within 1e-6. Of the second, which it has:
    within 1e-5."""
    for ours, theirs, tolerance in zip(found, expected, (1e-6, 1e-5), strict=True):
        assert ours == pytest.approx(theirs, abs=tolerance, rel=tolerance) and ours.keys() >= {
            "policy_loss",
            "wm_loss",
            "grad_norm",
        }


def without_the_fixes_training_would_diverge(rank: int, folder: Path) -> None:
    # The library's own loading gives all parameters one `step`, which each of them then counts up.
    expected = torch.load(folder / "expected.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "load_optimizer", shared_steps(states.load_optimizer))
        resumed = policy(FIRST, folder)
        resumed.resume(folder / WRITTEN)
    found = [update(resumed, number) for number in (2, 3)]
    FIRST.close()
    with pytest.raises(AssertionError):
        assert_close(found, expected)


def without_their_padding_optimizer_states_are_others(rank: int, folder: Path) -> None:
    # A tied embedding under pipeline parallelism has a bucket of its own, after which the library cuts
    # parameters out of wrong places.
    layout = Layout(pipeline=2, data=dist.get_world_size() // 2)
    trained = policy(layout, folder)
    update(trained, 0)
    expected = everything(trained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "_padded_buckets", lambda _: contextlib.nullcontext())
        save(trained, folder / "shifted", 1)
    save(trained, folder / "padded", 1)
    found = []
    for name in ("shifted", "padded"):
        assert trained.resume(folder / name) == 1
        equal = torch.tensor(same(everything(trained), expected)).int()
        dist.all_reduce(equal)
        found.append(int(equal))
    assert found[0] < found[1] == dist.get_world_size()
    layout.close()


def shared_steps(load: Any) -> Any:
    def wrapped(trained: Any, state: Any) -> None:
        load(trained, state)
        for part in states._parts(trained.optimizer):
            step = next(iter(part.optimizer.state.values()))["step"]
            for own in part.optimizer.state.values():
                own["step"] = step

    return wrapped


def an_optimizer_that_made_no_step_is_saved(rank: int, folder: Path) -> None:
    for distributed in (True, False):
        directory, options = (
            folder / f"no-step-{distributed}",
            {"megatron.distributed_optimizer": distributed},
        )
        trained = policy(FIRST, folder, **options)
        save(trained, directory, 0)
        expected = update(trained, 0)
        FIRST.close()
        resumed = policy(FIRST, folder, **options)
        assert resumed.resume(directory) == 0 and update(resumed, 0) == expected
        FIRST.close()


def random_states_come_back_in_the_same_layout_only(rank: int, folder: Path) -> None:
    trained = policy(FIRST, folder)
    torch.manual_seed(100 + rank)
    save(trained, folder / "random", 1)
    expected = torch.rand(3)
    FIRST.close()
    for layout, equal in ((FIRST, True), (LAYOUTS["DP4"], False)):
        resumed = policy(layout, folder)
        torch.manual_seed(5)
        resumed.resume(folder / "random")
        assert torch.equal(torch.rand(3), expected) == equal
        layout.close()


def the_newest_whole_one_is_taken_and_the_last_k_are_kept(rank: int, folder: Path) -> None:
    directory, trained = folder / "torn", policy(FIRST, folder)
    for done in (1, 2, 2, 3):
        update(trained, done)
        save(trained, directory, done)
        if done == 2:
            expected = everything(trained)
    assert names(directory) == ["update_000002-2", "update_000003"]
    if rank == 0:
        file = sorted((directory / "update_000003").glob("*.distcp"))[-1]
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        (directory / "update_000004").mkdir()  # as a killed copy leaves it
        (directory / "update_000005").mkdir()
        (directory / "update_000005" / "manifest.json").write_text(
            '{"format": "paw_hpc checkpoint 1", "files": {}}'
        )
    dist.barrier()
    resumed = trained
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(checkpoint._log, "warning", lambda form, *arguments: said.append(form % arguments))
        assert resumed.resume(directory) == 2
    assert same(everything(resumed), expected)
    if rank == 0:
        assert (
            "update_000005: has format 'paw_hpc checkpoint 1', this version reads 'paw_hpc megatron "
            "checkpoint 1'; passed over" in said[0]
        )
        assert "update_000004: not a whole checkpoint: manifest.json is missing; passed over" in said[1]
        assert "update_000003: torn: __" in said[2] and "has the wrong checksum; passed over" in said[2]
    FIRST.close()


def foreign_checkpoints_are_refused_by_what_differs(rank: int, folder: Path) -> None:
    for options, message in (
        ({"optimizer.lr": 2e-3}, r"made by another recipe \(optimizer.lr: 0.01 -> 0.002\)"),
        ({"algorithm.name": "ppo"}, "made by another recipe"),
        ({"megatron.distributed_optimizer": False}, r"megatron\.distributed_optimizer: True -> False"),
    ):
        trained = policy(FIRST, folder, **options)
        with pytest.raises(CheckpointError, match=message):
            trained.resume(folder / WRITTEN)
        FIRST.close()
    for other, message in (
        ("fewer layers", "of another model: its layers is 4, the run's is 2"),
        (
            "other words",
            r"its vocabulary is not the tokenizer's \(it was written with 51 tokens, the run's has 51\)",
        ),
        ("other weights", "model.path: its weights are not those that the run began with"),
    ):
        trained = policy(FIRST, folder, **{"model.path": str(folder / other)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "check_recipe", lambda *_: None)
            with pytest.raises(CheckpointError, match=message):
                trained.resume(folder / WRITTEN)
        FIRST.close()


def a_rank_that_cannot_write_stops_all_and_loses_nothing(rank: int, folder: Path) -> None:
    directory, trained = folder / "full", policy(FIRST, folder)
    save(trained, directory, 1)
    expected = everything(trained)
    update(trained, 1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for wait in (True, False):
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(StorageError, match="the checkpoint of update 2 could not be written"):
            save(trained, directory, 2, wait=wait)
            trained._checkpoints.finish()
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert names(directory) == ["update_000001"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "bytes_to_write", lambda _: 1 << 60)
        with pytest.raises(StorageError, match=r"a checkpoint takes 4294967296.0 GiB, and .* GiB are free"):
            save(trained, directory, 2)
    assert trained.resume(directory) == 1 and same(everything(trained), expected)
    save(trained, directory, 2, keep=1)
    assert names(directory) == ["update_000002"]
    FIRST.close()


def a_background_save_is_named_by_a_later_update(rank: int, folder: Path) -> None:
    directory, trained = folder / "background", policy(FIRST, folder)
    update(trained, 0)
    save(trained, directory, 1, wait=False)
    for number in range(1, 200):
        update(trained, number)
        if names(directory) == ["update_000001"]:
            break
    assert number < 199 and names(directory) == ["update_000001"]
    FIRST.close()


def killed_between_the_two_writes(rank: int, folder: Path) -> None:
    """Alone in its spawn of two ranks: rank 0 is killed when all tensors of update 2 are on the disk and the
    manifest is not."""
    trained = policy(Layout(tensor=2), folder)
    update(trained, 0)
    save(trained, folder / "killed", 1)
    if rank == 0:
        torch.save(update(trained, 1), folder / "after-1.pt")
    else:
        update(trained, 1)

    def die(pending: Any, files: Any) -> None:
        assert len(files) == 2 and all((pending.temporary / name).is_file() for name in files)
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint._Pending.commit = die  # type: ignore[method-assign]
    save(trained, folder / "killed", 2)


CASES: list[Case] = [
    *STRAIGHT,
    a_checkpoint_is_written,
    *map(GoesOnFromIt, LAYOUTS),
    without_the_fixes_training_would_diverge,
    without_their_padding_optimizer_states_are_others,
    an_optimizer_that_made_no_step_is_saved,
    random_states_come_back_in_the_same_layout_only,
    the_newest_whole_one_is_taken_and_the_last_k_are_kept,
    foreign_checkpoints_are_refused_by_what_differs,
    a_rank_that_cannot_write_stops_all_and_loses_nothing,
    a_background_save_is_named_by_a_later_update,
]
