"""A real run: a pretrained model is cloned from a scripted expert, then trained by vanilla GRPO and by
GRPO+PaW side by side, and judged.

Takes the recipes of recipes/smollm2: `paw data model smollm2` makes the model; `--model FOLDER` names
another. Both arms share the GPU, so their seconds say nothing about overhead (that is what the step `update`
is for); what they learn is what counts here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.common import markdown, options, skip, write
from benchmarks.gpu.synthetic import model_folder
from paw_hpc.policy.loading import load_tokenizer
from paw_hpc.recipe import load_recipe
from paw_hpc.system.errors import UserError

TOY = [
    "rollout.groups=2",
    "rollout.group_size=2",
    "rollout.max_response_tokens=8",
    "rollout.max_prompt_tokens=2048",
    "eval.panel=test:4@0",
]
TOY_CLONE = ["warm_start.games=8", "warm_start.steps=2", "warm_start.batch_tokens=2048"]


def paw(*words: str) -> float:
    """Runs the command of this checkout; seconds. Ends this step where it fails."""
    started = time.perf_counter()
    status = subprocess.run(
        [sys.executable, "-c", "from paw_hpc.cli.main import main; main()", *words]
    ).returncode
    if status:
        sys.exit(f"paw {' '.join(words)} ended with status {status}")
    return time.perf_counter() - started


def curve(run: Path) -> list[object]:
    """[arm, updates, seconds per update (median), success of each fifth of the updates in %]."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    success = [line["train/success"] for line in lines if "train/success" in line]
    seconds = sorted(line["time/update_s"] for line in lines if "time/update_s" in line)
    fifth = max(1, len(success) // 5)
    parts = [success[i : i + fifth] for i in range(0, len(success), fifth)]
    return [
        run.name,
        len(success),
        f"{seconds[len(seconds) // 2]:.1f}",
        ", ".join(f"{100 * sum(part) / len(part):.0f}" for part in parts),
    ]


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--benchmark", choices=["alfworld", "webshop", "search"], default="search")
        parser.add_argument("--model", default="smollm2")
        parser.add_argument("--updates", type=int, default=15)
        parser.add_argument(
            "--clone", nargs="*", default=[], metavar="key=value", help="overrides of the clone's recipe"
        )
        parser.add_argument(
            "--arms", nargs="*", default=[], metavar="key=value", help="overrides of both arms' recipe"
        )

    chosen = options(__doc__, add)
    recipes = Path("recipes/smollm2")
    with tempfile.TemporaryDirectory() as scratch:
        model = str(model_folder(Path(scratch) / "toy", toy=True)) if chosen.toy else chosen.model
        try:
            load_tokenizer(
                load_recipe(recipes / f"{chosen.benchmark}-clone.yaml", [f"model.path={model}"]).model
            )
        except UserError as error:
            skip(str(error))
        start, runs = Path(scratch) / "clone", chosen.out / f"learn-{chosen.benchmark}"
        cloned = paw(
            "warm-start",
            str(recipes / f"{chosen.benchmark}-clone.yaml"),
            f"model.path={model}",
            *(TOY_CLONE if chosen.toy else chosen.clone),
            "--out",
            str(start),
        )
        words = [
            f"model.path={start}",
            f"updates={1 if chosen.toy else chosen.updates}",
            *([*TOY, "model.dtype=float32"] if chosen.toy else chosen.arms),
        ]
        trained = paw(
            "quickstart", str(recipes / f"{chosen.benchmark}-paw.yaml"), *words, "--run-dir", str(runs)
        )
    header = [
        "arm",
        "updates",
        "s per update, both at once",
        "success while training, a fifth of the updates each, %",
    ]
    table = markdown(header, [curve(run.parent) for run in sorted(runs.glob("*/metrics.jsonl"))])
    report = next(iter(sorted((runs / "report").glob("*.md"))), None)
    body = [f"Cloned in {cloned:.0f} s, both arms trained and judged in {trained:.0f} s.", table]
    write(
        chosen.out,
        "learn",
        f"SmolLM2 on {chosen.benchmark}",
        [*body, *([report.read_text()] if report else [])],
    )


if __name__ == "__main__":
    main()
