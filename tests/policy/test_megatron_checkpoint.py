"""Checkpoints of four ranks: exact in the same layout, equal in another, whole or absent. The ranks' cases
are in `checkpoint_ranks`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException
from transformers import Qwen2ForCausalLM

from paw_hpc.policy.megatron.layout import Layout
from tests.policy import checkpoint_ranks
from tests.policy.checkpoint_ranks import WRITTEN, assert_close, policy, save, update
from tests.policy.models import sharpen, word_tokenizer
from tests.policy.test_convert_names import CONFIGS
from tests.processes import run_ranks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the ranks compute on the CPU")


def write_model(folder: Path, *, seed: int = 0, layers: int = 4) -> None:
    """A vocabulary of 51, which two ranks must pad."""
    config = type(CONFIGS["qwen2 tied"]).from_dict(
        CONFIGS["qwen2 tied"].to_dict() | {"vocab_size": 51, "num_hidden_layers": layers, "layer_types": None}
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    sharpen(model)
    model.save_pretrained(folder)
    word_tokenizer(51).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks left."""
    made = tmp_path_factory.mktemp("ranks")
    write_model(made / "model")
    write_model(made / "other weights", seed=1)
    write_model(made / "fewer layers", layers=2)
    write_model(made / "other words")
    words = made / "other words" / "tokenizer.json"
    words.write_text(words.read_text().replace('"w7"', '"v7"'))
    run_ranks(4, checkpoint_ranks.CASES, made)
    return made


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_four_ranks(folder: Path) -> None:
    assert (folder / WRITTEN).is_dir() and (folder / "expected.pt").is_file()


@pytest.mark.usefixtures("one_process")
def test_one_process_goes_on_from_four(folder: Path) -> None:
    layout = Layout()
    resumed = policy(layout, folder)
    assert resumed.resume(folder / WRITTEN) == 2
    assert_close([update(resumed, number) for number in (2, 3)], torch.load(folder / "expected.pt"))
    layout.close()


def test_stages_of_unlike_size(tmp_path: Path) -> None:
    write_model(tmp_path / "model", layers=5)
    run_ranks(2, [checkpoint_ranks.uneven_stages_go_on_in_other_layouts], tmp_path)


@pytest.mark.usefixtures("one_process")
def test_a_kill_between_the_two_writes_loses_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(2, [checkpoint_ranks.killed_between_the_two_writes], tmp_path)
    directory, layout = tmp_path / "killed", Layout()
    assert checkpoint_ranks.names(directory) == [".update_000002.tmp", "update_000001"]
    resumed = policy(layout, tmp_path)
    assert resumed.resume(directory) == 1
    assert update(resumed, 1) == pytest.approx(torch.load(tmp_path / "after-1.pt"), rel=1e-6, abs=1e-6)
    save(resumed, directory, 2)
    assert checkpoint_ranks.names(directory) == ["update_000001", "update_000002"]
    assert resumed.resume(directory) == 2
    layout.close()
