"""`paw convert`: a Hugging Face folder into a checkpoint in Megatron-core's distributed format, and back.

The format knows no layout: one process can write what any layout reads. More processes (torchrun, srun) share
the work, so that none needs memory for more than its part of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from paw_hpc.policy.checkpoint_folder import MANIFEST, checkpoints
from paw_hpc.policy.convert.architecture import architecture_of, read_architecture
from paw_hpc.policy.convert.folder import FolderReader
from paw_hpc.policy.convert.names import hf_shapes
from paw_hpc.policy.convert.transfer import check_vocabulary, export_hf, load_hf
from paw_hpc.policy.loading import load_tokenizer
from paw_hpc.policy.megatron import states
from paw_hpc.policy.megatron.checkpoint import HUGGING_FACE, Checkpoints, load, newest, verified
from paw_hpc.policy.megatron.identity import Identity
from paw_hpc.policy.megatron.layout import Layout
from paw_hpc.policy.megatron.model import PackedGPT, build_model
from paw_hpc.policy.megatron.shim import megatron
from paw_hpc.recipe import ModelSection, Recipe
from paw_hpc.run.metrics import RunDirectory
from paw_hpc.system.distributed import joined
from paw_hpc.system.errors import CheckpointError, RecipeError

TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Target:
    """The layout that a checkpoint is meant for."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int | None = None

    def layout(self, processes: int) -> Layout:
        """The one to work in: this one, with as many replicas as there are processes for; alone, that of one
        process."""
        if processes == 1:
            return Layout()
        model = self.tensor * self.pipeline
        if processes % model:
            raise RecipeError(
                f"paw convert: tensor {self.tensor} x pipeline {self.pipeline} parallel ranks do not "
                f"divide the {processes} processes"
            )
        return Layout(
            tensor=self.tensor, pipeline=self.pipeline, virtual=self.virtual, data=processes // model
        )


def convert(source: Path, folder: Path, target: Target, tokenizer: str | None = None) -> str:
    """Convert in the direction that `source` asks for; returns what was done, for a person.

    Args:
        source: a Hugging Face folder (its checkpoint goes to `folder/update_000000`); or a Megatron
            checkpoint, a directory of such, or a run directory, of whose newest a Hugging Face folder is
            made.
        tokenizer: folder, where the Hugging Face folder has none.

    Raises:
        CheckpointError: `source` is neither, or torn, or of an unknown architecture; `folder` holds something
            else.
        RecipeError: the layout does not divide the model.
    """
    with joined(gpu=False, timeout_s=TIMEOUT_S) as process:
        layout = target.layout(process.processes)
        try:
            if (source / "config.json").is_file() and not (source / MANIFEST).is_file():
                return _to_megatron(source, folder, layout, target, tokenizer)
            return _to_hugging_face(source, folder, layout)
        finally:
            layout.close()


def _to_megatron(source: Path, folder: Path, layout: Layout, target: Target, tokenizer: str | None) -> str:
    architecture, config = read_architecture(source)
    Layout(tensor=target.tensor, pipeline=target.pipeline, virtual=target.virtual).check(architecture)
    words = load_tokenizer(ModelSection(path=str(source), tokenizer=tokenizer))
    check_vocabulary(architecture, words, str(source))
    if checkpoints(folder) or (folder.exists() and any(folder.iterdir())):
        raise CheckpointError(f"{folder}: it is not empty; give a new folder")
    with FolderReader(source, hf_shapes(architecture)) as reader:
        dtype = "bfloat16" if reader.dtypes == {"BF16"} else "float32"
    models = _open(config, layout, dtype)
    load_hf(models, source, layout, architecture)
    writer = Checkpoints(
        layout, Identity(architecture, config, words), {"policy": states.Weights(list(models))}
    )
    writer.save(folder, 0, {}, keep=1)
    return f"{source} ({architecture.model_type}, {dtype}) -> {folder}: a Megatron checkpoint for any layout"


def _to_hugging_face(source: Path, folder: Path, layout: Layout) -> str:
    if (source / MANIFEST).is_file():
        path, manifest = source, verified(source)
    else:
        run = RunDirectory(source)
        neither = (
            f"{source}: neither a Hugging Face folder (no config.json) nor a whole Megatron checkpoint; "
            "runs of the one-process backend need no"
            " conversion: their checkpoints hold Hugging Face's weights"
        )
        try:
            found = newest(run.checkpoints if run.checkpoints.is_dir() else source)
        except CheckpointError as error:
            raise CheckpointError(f"{neither} ({error})") from None
        if found is None:
            raise CheckpointError(neither)
        path, manifest = found
    config: PreTrainedConfig = AutoConfig.from_pretrained(path / HUGGING_FACE)
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(ModelSection(path=str(path / HUGGING_FACE)))
    models = _open(config, layout, manifest["meta"]["megatron"]["dtype"])
    with megatron():
        state: dict[str, Any] = {"policy": {"weights": states.sharded_weights("policy", list(models))}}
        states.load_weights("policy", list(models), load(path, state)["policy"]["weights"])
    export_hf(models, folder, layout, config, architecture_of(config), tokenizer)
    return f"{path} -> {folder}: a Hugging Face folder"


def _open(config: PreTrainedConfig, layout: Layout, dtype: str) -> list[PackedGPT]:
    layout.open()
    recipe = Recipe.model_validate(
        {"model": {"path": "converted", "dtype": dtype}, "megatron": {"layers": "local"}}
    )
    return build_model(config, layout, recipe)
