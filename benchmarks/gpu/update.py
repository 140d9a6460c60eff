"""One update at the paper's shapes from random weights, vanilla and PaW in turns: seconds by phase, tokens
per second, MFU, memory, overhead.

Qwen2.5-1.5B's shape, bfloat16, the recipe of the paper's tables (KL loss with its reference, gradient
checkpointing), synthetic experience with the benchmarks' lengths; one PPO mini-batch of 256 transitions, so a
full update of the paper (128 episodes) is this many times over. The learning rate is nearly zero, so that
both arms see the same policy throughout. Ratios are sums over sums of paired updates with a bootstrap
interval over the pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.common import by_kernel, device, markdown, options, skip, synchronize, write
from benchmarks.gpu.synthetic import LENGTHS, QWEN_1_5B, TOY, TOY_LENGTHS, Lengths, model_folder, pool
from benchmarks.policy import make_policy
from paw_hpc.build import processes_of
from paw_hpc.evaluation.statistics import ratio_interval
from paw_hpc.experience import Pool
from paw_hpc.objective.plan import plan
from paw_hpc.policy.backend import Policy
from paw_hpc.recipe import Recipe, load_recipe

ARMS = {"vanilla": "wm.enabled=false", "PaW": "wm.enabled=true"}
Found = dict[str, list[float]]


def recipes(folder: Path, chosen: argparse.Namespace, benchmark: str) -> dict[str, Recipe]:
    overrides = [
        f"model.path={folder}",
        f"policy.backend={chosen.backend}",
        "optimizer.lr=1e-12",
        "optimizer.mini_batch=null",
    ]
    overrides += [
        f"model.gradient_checkpointing={str(chosen.checkpointing).lower()}",
        f"optimizer.max_tokens_per_micro_batch={chosen.micro_batch}",
    ]
    overrides += [
        f"megatron.recompute={'full' if chosen.checkpointing else 'none'}",
        "megatron.reference_on_cpu=false",
    ]
    overrides += ["model.dtype=float32"] if chosen.toy else []
    return {
        arm: load_recipe(Path(f"recipes/{benchmark}/qwen2.5-1.5b-grpo-paw.yaml"), [*overrides, word])
        for arm, word in ARMS.items()
    }


def one_update(policy: Policy, experience: Pool, recipe: Recipe, number: int) -> dict[str, float]:
    """Seconds of scoring, planning and updating, and what the update says of itself."""
    times = {}
    synchronize()
    started = time.perf_counter()
    scores = policy.score(experience)
    times["score_s"] = time.perf_counter() - started
    planned = plan(experience, scores, recipe, number).batch
    times["plan_s"] = time.perf_counter() - started - times["score_s"]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    metrics = policy.update(planned, number)
    synchronize()
    total = time.perf_counter() - started
    times |= {"update_s": total - times["score_s"] - times["plan_s"], "total_s": total}
    kept = {
        name.rpartition("/")[2]: value
        for name, value in metrics.items()
        if name.startswith(("system/", "time/"))
    }
    if not np.isfinite(metrics.get("grad_norm", np.nan)):
        raise RuntimeError(f"no optimizer step was made: {metrics}")
    kept["grad_norm"] = metrics["grad_norm"]
    return times | kept | {"tokens": float(planned.num_tokens), "rows": float(planned.num_rows)}


def measure(
    policy: Policy, arms: dict[str, Recipe], lengths: Lengths, chosen: argparse.Namespace
) -> dict[str, Found]:
    """Arm -> name -> its values over the counted updates; the arms take turns, and their first update is not
    counted."""
    found: dict[str, Found] = {arm: defaultdict(list) for arm in arms}
    vocabulary = (TOY if chosen.toy else QWEN_1_5B)["vocab_size"]
    experience = pool(lengths, chosen.samples, vocabulary)
    for number in range(chosen.repeats + 1):
        for arm in list(arms) if number % 2 else reversed(list(arms)):
            for name, value in one_update(policy, experience, arms[arm], number).items():
                if number:
                    found[arm][name].append(value)
    return found


def profiled(policy: Policy, recipe: Recipe, lengths: Lengths, chosen: argparse.Namespace) -> str:
    experience = pool(lengths, max(16, chosen.samples // 4), (TOY if chosen.toy else QWEN_1_5B)["vocab_size"])
    batch = plan(experience, policy.score(experience), recipe, 0).batch
    return by_kernel(lambda: policy.update(batch, 0), most=16)


def table(found: dict[str, Found]) -> list[str]:
    columns = [
        "score_s",
        "plan_s",
        "update_s",
        "total_s",
        "tokens",
        "rows",
        "tokens_per_s",
        "mfu",
        "memory_peak_bytes",
    ]
    names = [
        "score s",
        "plan s",
        "update s",
        "all s",
        "tokens",
        "rows",
        "tokens/s of the update",
        "MFU",
        "peak GiB",
    ]
    rows = []
    for arm, values in found.items():
        middle = {name: float(np.median(series)) for name, series in values.items()}
        middle["memory_peak_bytes"] /= 2**30
        rows.append(
            [
                arm,
                *(
                    f"{middle[c]:,.0f}" if middle.get(c, 0.0) > 999 else f"{middle.get(c, float('nan')):.3g}"
                    for c in columns
                ),
            ]
        )
    ratios = []
    for column, said in (("update_s", "update"), ("total_s", "scoring, planning and update")):
        paw, vanilla = found["PaW"][column], found["vanilla"][column]
        low, high = ratio_interval(paw, vanilla, range(len(paw)))
        ratios.append(f"PaW / vanilla, {said}: {sum(paw) / sum(vanilla):.3f} [{low:.3f}, {high:.3f}]")
    tokens = sum(found["PaW"]["tokens"]) / sum(found["vanilla"]["tokens"])
    phases = sorted({name for values in found.values() for name in values if name.startswith("policy_")})
    more = [
        f"{name.removeprefix('policy_')}: "
        + ", ".join(f"{arm} {np.median(v[name]):.3f} s" for arm, v in found.items())
        for name in phases
    ]
    return [
        markdown(["", *names], rows),
        "; ".join(ratios) + f"; tokens {tokens:.3f}.",
        *(["Phases: " + "; ".join(more)] if more else []),
    ]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=["huggingface", "megatron"], default="huggingface")
    parser.add_argument("--benchmarks", nargs="+", choices=list(LENGTHS), default=list(LENGTHS))
    parser.add_argument("--samples", type=int, default=256, help="transitions of the update")
    parser.add_argument("--repeats", type=int, default=4, help="counted updates of each arm")
    parser.add_argument("--micro-batch", type=int, default=16384, help="tokens")
    parser.add_argument(
        "--no-checkpointing", dest="checkpointing", action="store_false", help="keep all activations"
    )
    parser.add_argument("--folder", type=Path, help="where the random model is kept")


def main() -> None:
    chosen = options(__doc__, _options)
    if chosen.toy:
        chosen.samples, chosen.repeats = 16, 1
    if chosen.backend == "megatron":
        try:
            import megatron.core  # noqa: F401
        except ImportError:
            skip("megatron-core is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(chosen.folder or Path(scratch) / "model", chosen.toy)
        arms = {name: recipes(folder, chosen, name) for name in chosen.benchmarks}
        first = next(iter(arms.values()))["PaW"]
        with processes_of(first) if chosen.backend == "megatron" else contextlib.nullcontext():
            policy = make_policy(first)
            body = []
            for benchmark in chosen.benchmarks:
                lengths = TOY_LENGTHS if chosen.toy else LENGTHS[benchmark]
                body.append(
                    f"## {benchmark}: prompts of {lengths.prompt}, responses of {lengths.response}, "
                    f"observations of {lengths.observation} tokens"
                )
                body += table(measure(policy, arms[benchmark], lengths, chosen))
                body.append(
                    "Where the update of a quarter of them goes. "
                    f"{profiled(policy, arms[benchmark]['PaW'], lengths, chosen)}"
                )
                name = "megatron" if chosen.backend == "megatron" else "update"
                title = (
                    f"One update of {chosen.samples} transitions, {policy.describe()}, backend "
                    f"{chosen.backend}, on {device()}"
                )
                write(chosen.out, name + ("" if chosen.checkpointing else "-all-activations"), title, body)


if __name__ == "__main__":
    main()
