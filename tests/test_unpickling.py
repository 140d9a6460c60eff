"""What the package unpickles: nothing without limits that another user could have written. Files are planted,
and the code is looked through."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paw_hpc.envs.search.encoder import Encoder, EncoderSettings
from paw_hpc.policy.loading import load_model, load_tokenizer
from paw_hpc.system.errors import UserError
from tests.factories import tiny_recipe
from tests.policy.models import model_folder
from tests.rollout.site import PYTHON

PACKAGE = Path("paw_hpc")
KNOWN = {
    "policy/megatron/writing.py: pickle.load": "a file without a name, which its forked process alone has "
    "open",
    "policy/megatron/reading.py: pickle.Unpickler": "the class that allows the names of the format alone",
    "system/distributed.py: dist.broadcast_object_list": "between ranks that have exchanged the word of "
    "the job",
    "system/distributed.py: dist.all_gather_object": "between ranks that have exchanged the word of the job",
    "policy/megatron/checkpoint.py: dist.broadcast_object_list": "likewise",
    "policy/megatron/checkpoint.py: dist.all_gather_object": "likewise",
    "policy/megatron/policy.py: dist.all_gather_object": "likewise",
    "policy/convert/transfer.py: dist.all_gather_object": "likewise",
}
_LIBRARIES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_OBJECTS = {
    "broadcast_object_list",
    "all_gather_object",
    "gather_object",
    "scatter_object_list",
    "recv_object_list",
}


def unpickling(source: str) -> set[str]:
    """Calls and base classes in a program that read pickles (or the like) without limits."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = (
            [node.func]
            if isinstance(node, ast.Call)
            else node.bases
            if isinstance(node, ast.ClassDef)
            else []
        )
        for name in names:
            if not isinstance(name, ast.Attribute):
                continue
            owner, called = ast.unparse(name.value), name.attr
            given = (
                {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
                if isinstance(node, ast.Call)
                else {}
            )
            if (
                (owner in _LIBRARIES and called in {"load", "loads", "Unpickler", "open"})
                or (owner == "torch" and called == "load" and given.get("weights_only") != "True")
                or (
                    owner in {"np", "numpy"}
                    and called in {"load", "fromfile"}
                    and given.get("allow_pickle", "False") != "False"
                )
                or (owner == "yaml" and called in {"load", "unsafe_load", "full_load"})
                or called in _OBJECTS
            ):
                found.add(f"{owner}.{called}")
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in _LIBRARIES:
            found.add(f"from {node.module}")
    return found


def test_nothing_is_unpickled_without_limits_but_what_is_known() -> None:
    found = {
        f"{file.relative_to(PACKAGE)}: {call}"
        for file in PACKAGE.rglob("*.py")
        for call in unpickling(file.read_text())
    }
    assert found == set(KNOWN)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("pickle.loads(x)", {"pickle.loads"}),
        ("torch.load(x)", {"torch.load"}),
        ("torch.load(x, weights_only=False)", {"torch.load"}),
        ("torch.load(x, map_location='cpu', weights_only=True)", set()),
        ("np.load(x, allow_pickle=True)", {"np.load"}),
        ("np.load(x, mmap_mode='r')", set()),
        ("yaml.load(x, y)", {"yaml.load"}),
        ("from pickle import loads", {"from pickle"}),
        ("class A(pickle.Unpickler): pass", {"pickle.Unpickler"}),
    ],
)
def test_the_search_finds_it(source: str, found: set[str]) -> None:
    assert unpickling(source) == found


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["BOMB"],)


@pytest.fixture
def exploded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is there once a bomb has gone off."""
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    return tmp_path / "exploded"


def test_a_pretrained_model_with_a_bomb_for_weights_is_refused(tmp_path: Path, exploded: Path) -> None:
    folder = tmp_path / "model"
    model_folder(folder)
    recipe = tiny_recipe(
        **{"model.tiny": None, "model.tokenizer": None, "model.path": str(folder), "model.device": "cpu"}
    )
    tokenizer = load_tokenizer(recipe.model)
    load_model(recipe, tokenizer)  # as it is, it can be loaded
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb()}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"^model\.path: .* cannot be loaded as a causal language model: "):
        load_model(recipe, tokenizer)
    with pytest.raises(UserError):
        Encoder(EncoderSettings.of(str(tmp_path / "model"), None, 32))
    assert not exploded.exists()
    torch.load(tmp_path / "model" / "pytorch_model.bin", weights_only=False)  # the control: it would have
    assert exploded.exists()


def test_an_array_of_objects_is_refused(tmp_path: Path, exploded: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    for mode in ("r", None):
        with pytest.raises(ValueError, match=r"Python objects in dtype|allow_pickle"):
            np.load(tmp_path / "x.npy", mmap_mode=mode)  # type: ignore[call-overload]
    assert not exploded.exists()
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert exploded.exists()


IN_SGLANG = """
import base64, sys
from sglang.srt.utils import MultiprocessingSerializer
try:
    MultiprocessingSerializer.deserialize(base64.b64decode(sys.argv[1]))
except Exception as error:
    print("refused:", error)
"""


@pytest.mark.skipif(not PYTHON.exists(), reason="SGLang's environment is not there (make setup-sglang)")
@pytest.mark.slow
def test_the_pinned_sglang_refuses_a_bomb_in_the_place_of_weights(exploded: Path) -> None:
    """By what /update_weights_from_tensor reads its tensors with; whoever has the key could send them."""
    import base64

    sent = base64.b64encode(pickle.dumps(Bomb())).decode()
    environment = {
        "PYTHONPATH": str(Path("paw_hpc/rollout/sglang/cpu_shim").resolve()),
        "SGLANG_USE_CPU_ENGINE": "1",
        "HOME": str(Path.home()),
    }
    done = subprocess.run(
        [str(PYTHON), "-c", IN_SGLANG, sent], env=environment, capture_output=True, text=True, timeout=300
    )
    assert "refused: " in done.stdout and "mkdir" in done.stdout, done.stderr[-2000:]
    assert not exploded.exists()
