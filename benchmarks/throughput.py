"""What PaW adds to an update, phase by phase, and what the same step costs the way it would otherwise be
written with `transformers`.

    python benchmarks/throughput.py [RECIPE] [key=value ...] [--updates 6] [--out FILE]

The same recipe with the world model off and on, in one process, in turns. The learning rate is set to nearly
zero, so both arms stay at the starting policy and play the very same episodes (checked): what differs is the
world-model rows alone. The first update of each arm is not counted (caches).

Beside them, on the same experience and in turns with them: the training step over padded batches with the
logits of every token, from the stock model (its loss and gradient norm are compared with ours: it is the same
step), and rollouts in lock-step, every turn one padded `generate` from the whole prompt that waits for its
slowest episode.

Ratios are sums over sums of the counted updates, with 95 % intervals from a bootstrap over pairs of updates.
Seconds are not portable. CPU: seconds of this process, in which all computing is done on a machine without a
GPU; on a machine shared with others they are the fairer of the two. Memory is that of all processes of one
arm alone, in a process tree of its own, shared pages counted once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from paw_hpc.build import Machinery
from paw_hpc.evaluation.episodes import record
from paw_hpc.evaluation.episodes.folder import EpisodeFolder
from paw_hpc.evaluation.statistics import ratio_interval
from paw_hpc.experience import Batch, Pool
from paw_hpc.loop import one_update, tasks_of
from paw_hpc.objective.plan import plan
from paw_hpc.objective.policy_loss import make_row_loss
from paw_hpc.recipe import Recipe, load_recipe
from paw_hpc.rollout.collector import Collector, PlaySettings
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.event_loop import EventLoop

ARMS = {"vanilla": "wm.enabled=false", "PaW": "wm.enabled=true"}
PHASES = ("collect", "score", "plan", "train", "publish", "keep", "update")
Metrics = dict[str, float]

# ------------------------------------------------------------------------------------- the two arms, in turns


def measure(recipes: dict[str, Recipe], updates: int) -> tuple[dict[str, list[Metrics]], str]:
    """(arm -> metrics of each counted update, what the policy is); the outside baseline's metrics are with
    PaW's."""
    found: dict[str, list[Metrics]] = {arm: [] for arm in recipes}
    with EventLoop() as runner, contextlib.ExitStack() as stack:
        machines = {arm: stack.enter_context(Machinery(recipe, runner)) for arm, recipe in recipes.items()}
        tasks = machines["PaW"].benchmark.tasks("train")
        stock = stock_model(machines["PaW"])
        kept = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keepers = {arm: keeper(recipes[arm], machines[arm], kept / arm) for arm in recipes}
        for update in range(updates + 1):
            for arm in list(recipes) if update % 2 else reversed(list(recipes)):
                cpu = time.process_time()
                metrics = one_update(recipes[arm], machines[arm], tasks, update, keep=keepers[arm])
                metrics["cpu/update_s"] = time.process_time() - cpu
                if update:
                    found[arm].append(metrics)
            outside = lock_step(
                machines["PaW"], runner, stock, tasks_of(tasks, recipes["PaW"], update), update
            )
            outside |= same_step_both_ways(
                machines["PaW"], stock, tasks_of(tasks, recipes["PaW"], update), update
            )
            if update:
                found["PaW"][-1] |= outside
    if any(
        v["rollout/generated_tokens"] != p["rollout/generated_tokens"]
        for v, p in zip(found["vanilla"], found["PaW"], strict=True)
    ):
        raise RuntimeError("the two arms played different episodes: the comparison would be unfair")
    return found, machines["PaW"].policy.describe()


def keeper(recipe: Recipe, machinery: Machinery, folder: Path) -> Callable[[record.Update], Metrics]:
    """Keeps the episodes that a run of this recipe keeps, as the loop does."""
    kept = EpisodeFolder(folder, recipe.episodes.max_megabytes * 10**6)
    return lambda played: kept.write_update(
        played.number, record.training_rows(played, recipe, machinery.policy.tokenizer)
    )


# -------------------------------------------------------------------- the outside baseline: padded, lock-step


def stock_model(machinery: Machinery) -> PreTrainedModel:
    """The same weights in `transformers`' own model, with its own attention."""
    recipe = machinery.recipe
    with tempfile.TemporaryDirectory() as folder:
        machinery.policy.export(Path(folder))
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, recipe.model.dtype), attn_implementation="sdpa"
        )
    return model.to(machinery.policy.device)  # type: ignore[attr-defined]


def same_step_both_ways(
    machinery: Machinery, stock: PreTrainedModel, tasks: Sequence[Any], update: int
) -> Metrics:
    """Seconds of forward and backward of one planned PaW batch: packed with the row head, and padded with all
    logits. Neither makes a step.

    Raises RuntimeError where loss or gradient norm differ: it would not be the same step.
    """
    groups, stats = machinery.collect(tasks, machinery.recipe.rollout.group_size, update)
    pool = Pool.from_groups(groups)
    scores = (
        machinery.scores_of(pool, stats)
        if machinery.recipe.algorithm.old_logp == "rollout"
        else machinery.policy.score(pool)
    )
    batch = plan(pool, scores, machinery.recipe, update).batch
    policy: Any = machinery.policy
    ways = {
        "packed": lambda: float(policy._accumulate("policy", batch, [])),
        "padded": lambda: padded_step(stock, batch, machinery.recipe),
    }
    seconds: Metrics = {}
    results = []
    for name in list(ways) if update % 2 else reversed(list(ways)):
        model = policy.model if name == "packed" else stock
        start, cpu = time.perf_counter(), time.process_time()
        loss = ways[name]()
        seconds |= {
            f"{name}/train_s": time.perf_counter() - start,
            f"{name}/cpu_s": time.process_time() - cpu,
        }
        norm = float(
            torch.sqrt(sum((p.grad.double() ** 2).sum() for p in model.parameters() if p.grad is not None))
        )  # type: ignore[arg-type]
        model.zero_grad(set_to_none=True)
        results.append((loss, norm))
    if not np.allclose(*results, rtol=1e-3, atol=1e-5):
        raise RuntimeError(f"loss and gradient norm of the two ways differ: {results}")
    lengths = batch.lengths.float()
    return seconds | {
        "padded/tokens": float(padded_tokens(batch, machinery.recipe)),
        "packed/tokens": float(lengths.sum()),
    }


def padded_pieces(batch: Batch, recipe: Recipe) -> Iterator[torch.Tensor]:
    """Samples in their order, as many as fit into the micro-batch's tokens when padded to the longest of
    them."""
    piece: list[int] = []
    longest = 0
    for sample, length in enumerate(batch.lengths.tolist()):
        longest = max(longest, length)
        if piece and longest * (len(piece) + 1) > recipe.optimizer.max_tokens_per_micro_batch:
            yield torch.tensor(piece)
            piece, longest = [], length
        piece.append(sample)
    yield torch.tensor(piece)


def padded_tokens(batch: Batch, recipe: Recipe) -> int:
    return sum(len(piece) * int(batch.lengths[piece].max()) for piece in padded_pieces(batch, recipe))


def padded_step(model: PreTrainedModel, batch: Batch, recipe: Recipe) -> float:
    """Forward and backward over right-padded batches, log-softmax of the logits of all tokens; returns the
    summed loss."""
    total = 0.0
    for piece in padded_pieces(batch, recipe):
        part = batch.take(piece)
        lengths = part.lengths.tolist()
        ids = torch.nn.utils.rnn.pad_sequence(list(part.tokens.split(lengths)), batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(n, dtype=torch.long) for n in lengths], batch_first=True
        )
        part, device = part.to(model.device), model.device
        logits = (
            model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits.float()
            / recipe.rollout.temperature
        )
        logp = torch.log_softmax(logits, dim=-1)
        entropy = -(logp.exp() * logp).sum(-1)
        where = mask.flatten().nonzero()[:, 0].to(device)[part.row_position]
        chosen = logp.flatten(0, 1)[where].gather(-1, part.row_target[:, None])[:, 0]
        loss = make_row_loss(part, recipe)(
            chosen, entropy.flatten()[where], torch.arange(part.num_rows, device=device)
        ).sum()
        loss.backward()
        total += float(loss.detach())
    return total


class LockStepEngine:
    """Every turn: wait for all live episodes, then one left-padded `generate` from their whole prompts (see
    rollout.engines.base.Engine)."""

    def __init__(self, model: PreTrainedModel, eos: int, stop_after: int) -> None:
        self.model, self.eos, self.limit = model, eos, stop_after
        self.joined: set[int] = set()
        self.waiting: dict[int, tuple[GenerationRequest, asyncio.Future[Completion]]] = {}

    def join(self, episode: int) -> None:
        self.joined.add(episode)

    def leave(self, episode: int) -> None:
        self.joined.discard(episode)
        self._serve()

    async def generate(self, request: GenerationRequest) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self.waiting[request.episode] = (request, future)
        self._serve()
        return await future

    def _serve(self) -> None:
        if not self.waiting or not self.joined <= self.waiting.keys():
            return
        batch = [self.waiting.pop(episode) for episode in sorted(self.waiting)]
        for first in range(0, len(batch), self.limit):
            piece = batch[first : first + self.limit]
            for (_, future), answer in zip(
                piece, self._answers([request for request, _ in piece]), strict=True
            ):
                future.set_result(answer)

    @torch.inference_mode()
    def _answers(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        prompts = [torch.from_numpy(r.prompt_ids.astype(np.int64)) for r in requests]
        ids = torch.nn.utils.rnn.pad_sequence(
            prompts, batch_first=True, padding_side="left", padding_value=self.eos
        )
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left"
        )
        torch.manual_seed(requests[0].seed)
        out = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            do_sample=True,
            temperature=requests[0].temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=requests[0].max_tokens,
            eos_token_id=self.eos,
            pad_token_id=self.eos,
        )
        answers = []
        for row in out[:, ids.shape[1] :].cpu().tolist():
            end = row.index(self.eos) + 1 if self.eos in row else len(row)
            kept = np.array(row[:end], dtype=np.int32)
            answers.append(Completion(kept, np.zeros(end, dtype=np.float32), None, 0, self.eos in row))
        return answers


def lock_step(
    machinery: Machinery, runner: EventLoop, stock: PreTrainedModel, tasks: Sequence[Any], update: int
) -> Metrics:
    """Seconds and tokens of the same games and number of episodes, played by `LockStepEngine` (other draws,
    so not the same episodes)."""
    recipe, policy = machinery.recipe, machinery.policy
    rollout = recipe.rollout
    settings = PlaySettings(
        recipe.seed,
        "train",
        rollout.temperature,
        rollout.max_prompt_tokens,
        rollout.max_response_tokens,
        recipe.wm.max_observation_tokens,
    )
    engine = LockStepEngine(stock, policy.tokenizer.eos_token_id, rollout.max_batch)  # type: ignore[attr-defined]
    collector = Collector(machinery.benchmark, engine, machinery.chat, settings)
    cpu = time.process_time()
    _, stats = runner.run(collector.collect(tasks, rollout.group_size, update))
    return {
        "lockstep/collect_s": stats.seconds,
        "lockstep/tokens": stats.generated_tokens,
        "lockstep/cpu_s": time.process_time() - cpu,
    }


# ----------------------------------------------------------------------------------------------------- memory


def memory_of(recipe_path: Path, overrides: Sequence[str], arm: str) -> int:
    """Bytes that one arm needs at most, in a process tree of its own."""
    command = [sys.executable, __file__, str(recipe_path), *overrides, "--memory-of", arm]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak_of(recipe: Recipe) -> int:
    """Most proportional set size of this process and its children together during two updates, looked at
    every 0.2 s."""
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.2):
            total, me = 0, psutil.Process()
            for process in (me, *me.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            peak = max(peak, total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with EventLoop() as runner, Machinery(recipe, runner) as machinery:
        tasks = machinery.benchmark.tasks("train")
        for update in range(2):
            one_update(recipe, machinery, tasks, update)
    ended.set()
    watcher.join()
    return peak


# ----------------------------------------------------------------------------------------------------- report


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """`1.153 [1.120, 1.190]`, sum over sum."""
    if min(sum(above), sum(below)) <= 0:
        return "–"
    low, high = ratio_interval(above, below, range(len(above)))
    return f"{sum(above) / sum(below):.3f} [{low:.3f}, {high:.3f}]"


def tables(found: dict[str, list[Metrics]], memory: dict[str, int]) -> list[str]:
    """Markdown: the update by phase, what explains it, the outside baseline."""
    vanilla, paw = found["vanilla"], found["PaW"]

    def column(metrics: Sequence[Metrics], name: str) -> list[float]:
        return [float(m[name]) for m in metrics]

    lines = ["| one update, seconds | vanilla | PaW | PaW / vanilla [95 %] |", "|---|---:|---:|---:|"]
    names = [(phase, f"time/{phase}_s") for phase in PHASES] + [("update, CPU", "cpu/update_s")]
    for label, name in names:
        v, p = column(vanilla, name), column(paw, name)
        lines.append(f"| {label} | {np.mean(v):.3f} | {np.mean(p):.3f} | {ratio(p, v)} |")
    lines.append(
        f"| peak memory, MiB | {memory['vanilla'] / 2**20:,.0f} | {memory['PaW'] / 2**20:,.0f} | "
        f"{memory['PaW'] / memory['vanilla']:.3f} |"
    )
    lines += ["", "| what explains it, per update | vanilla | PaW | PaW / vanilla |", "|---|---:|---:|---:|"]
    for label, name in (("packed tokens", "policy/tokens"), ("scored rows (head)", "policy/rows")):
        v, p = np.mean(column(vanilla, name)), np.mean(column(paw, name))
        lines.append(f"| {label} | {v:,.0f} | {p:,.0f} | {p / v:.3f} |")
    for label, tokens, seconds in (
        ("trained tokens/s", "policy/tokens", "time/train_s"),
        ("generated tokens/s", "rollout/generated_tokens", "time/collect_s"),
    ):
        v, p = (sum(column(m, tokens)) / sum(column(m, seconds)) for m in (vanilla, paw))
        lines.append(f"| {label} | {v:,.0f} | {p:,.0f} | {p / v:.3f} |")
    of_update = (
        [sum(m[f"time/{phase}_s"] for phase in ("plan", "train")) for m in paw],
        [m["time/update_s"] for m in paw],
    )
    extra = [
        a - sum(m[f"time/{phase}_s"] for phase in ("plan", "train"))
        for a, m in zip(of_update[0], vanilla, strict=True)
    ]
    low, high = ratio_interval(extra, of_update[1], range(len(extra)))
    share = 100 * sum(extra) / sum(of_update[1])
    keeping = [100 * sum(column(m, "time/keep_s")) / sum(column(m, "time/update_s")) for m in (vanilla, paw)]
    lines.append(f"| keeping episodes, share of an update, % | {keeping[0]:.2f} | {keeping[1]:.2f} | |")
    lines.append(
        f"| world model's share of an update (plan and train), % | | {share:.1f} [{100 * low:.1f}, "
        f"{100 * high:.1f}] | |"
    )
    lines += [
        "",
        "| the same PaW batch, forward and backward | seconds | CPU s | tokens computed | seconds / ours "
        "[95 %] | CPU / ours [95 %] |",
    ]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for label, way in (
        ("ours: packed, only scored rows to the head", "packed"),
        ("transformers: padded, logits of all tokens", "padded"),
    ):
        seconds, cpu, tokens = (column(paw, f"{way}/{what}") for what in ("train_s", "cpu_s", "tokens"))
        ours, ours_cpu = column(paw, "packed/train_s"), column(paw, "packed/cpu_s")
        numbers = f"{np.mean(seconds):.3f} | {np.mean(cpu):.3f} | {np.mean(tokens):,.0f}"
        lines.append(f"| {label} | {numbers} | {ratio(seconds, ours)} | {ratio(cpu, ours_cpu)} |")
    lines += [
        "",
        "| the same games played | seconds | generated tokens/s | tokens/s, ours / it [95 %] |",
        "|---|---:|---:|---:|",
    ]
    ours_s, ours_t = column(paw, "time/collect_s"), column(paw, "rollout/generated_tokens")
    theirs_s, theirs_t = column(paw, "lockstep/collect_s"), column(paw, "lockstep/tokens")
    lines.append(f"| ours | {np.mean(ours_s):.3f} | {sum(ours_t) / sum(ours_s):,.0f} | 1 |")
    per_token = (
        [s / t for s, t in zip(theirs_s, theirs_t, strict=True)],
        [s / t for s, t in zip(ours_s, ours_t, strict=True)],
    )
    lines.append(
        f"| lock-step, padded generate | {np.mean(theirs_s):.3f} | {sum(theirs_t) / sum(theirs_s):,.0f} | "
        f"{ratio(*per_token)} |"
    )
    return lines


def heading(recipe: Recipe, options: argparse.Namespace, described: str) -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy"))
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU ({platform.machine()}, threads: {torch.get_num_threads()})"
    )
    command = " ".join(
        [
            "python benchmarks/throughput.py",
            str(options.recipe),
            *options.overrides,
            f"--updates {options.updates}",
        ]
    )
    return [
        f"# What PaW adds to an update, {time.strftime('%Y-%m-%d')}, {device}, Python "
        f"{platform.python_version()}, {versions}",
        "",
        f"`{command}`: {described}, {recipe.rollout.groups} groups of {recipe.rollout.group_size}, "
        f"{options.updates} counted updates of each arm, in turns.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("recipes/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--out", type=Path, help="also write the tables here")
    parser.add_argument("--json", type=Path, help="also write the metrics of every update here")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    recipes = {
        arm: load_recipe(options.recipe, [*options.overrides, "optimizer.lr=1e-12", switch])
        for arm, switch in ARMS.items()
    }
    if options.memory_of:
        print(peak_of(recipes[options.memory_of]))
        return
    found, described = measure(recipes, options.updates)
    memory = {arm: memory_of(options.recipe, options.overrides, arm) for arm in ARMS}
    text = "\n".join(heading(recipes["PaW"], options, described) + tables(found, memory)) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    if options.json:
        options.json.write_text(json.dumps({"memory": memory, "updates": found}, indent=1))


if __name__ == "__main__":
    main()
