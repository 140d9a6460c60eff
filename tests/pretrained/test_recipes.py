"""The recipes for the pretrained model at smoke size: a clone, and an update of PaW that goes on from it."""

from __future__ import annotations

from pathlib import Path

from paw_hpc import loop
from paw_hpc.policy.loading import load_tokenizer
from paw_hpc.recipe import ModelSection, load_recipe
from paw_hpc.run.metrics import read_metrics
from paw_hpc.study import warmstart

# bfloat16 takes many times as long where the CPU has no instructions for it
ON_A_CPU = ["model.device=cpu", "model.dtype=float32"]
RECIPES = Path(__file__).parents[2] / "recipes" / "smollm2"
SMALL = [
    "env.max_steps=2",
    "rollout.groups=1",
    "rollout.group_size=2",
    "rollout.max_response_tokens=24",
    "optimizer.max_tokens_per_micro_batch=1024",
]


def test_an_update_from_a_clone(smollm2: Path, tmp_path: Path) -> None:
    start = [
        f"model.path={smollm2}",
        *ON_A_CPU,
        "warm_start.games=4",
        "warm_start.steps=2",
        "warm_start.batch_tokens=512",
    ]
    clone = warmstart.main(RECIPES / "search-clone.yaml", start, tmp_path / "clone")
    said = [
        load_tokenizer(ModelSection(path=str(folder))).apply_chat_template([{"role": "user", "content": "1"}])
        for folder in (smollm2, clone)
    ]
    assert said[0] == said[1]
    recipe = load_recipe(RECIPES / "search-paw.yaml", [f"model.path={clone}", *ON_A_CPU, "updates=1", *SMALL])
    loop.train(recipe, tmp_path / "run", command="a test")
    (last,) = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "update" in line]
    assert last["wm/loss"] > 0 and last["wm/tokens"] > 0
