"""A start for RL: behaviour cloning on expert play, a Hugging Face folder at the end (`paw warm-start
RECIPE`).

RL needs a start that wins now and then. The scripted expert plays training games (with detours, so that the
policy also sees states an expert avoids), and a model is trained to give the expert's command after the
recipe's prompt: a tiny Qwen2-architecture model from scratch with a tokenizer of its own (`model.tiny`), or a
pretrained one, or one that was cloned before (`model.path`). Expert play is cached by content; no validation
game is touched.
"""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from paw_hpc.envs.base import AgentView, Demonstration, Lessons, Message
from paw_hpc.experience import Ids
from paw_hpc.kernels import linear_row_loss
from paw_hpc.policy.loading import load_model, load_tokenizer, resolve_device, tokenizer_key
from paw_hpc.policy.optimizer import Optimizer
from paw_hpc.policy.packed import Packing, hidden_states, use_packed_attention
from paw_hpc.recipe import OptimizerSection, Recipe, dump_recipe, load_recipe
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.prompts import Conversation, Overlong
from paw_hpc.system.errors import UserError
from paw_hpc.system.seeding import generator


@dataclass(frozen=True, slots=True)
class ClonedSequence:
    """Ids of a prompt and of the expert's answer with its end-of-turn token; of a conversation, as far as one
    goes on from the other, all of them."""

    ids: Ids
    is_answer: np.ndarray
    """bool[n]: the tokens to be cloned."""


@dataclass(slots=True)
class _Shown:
    """What a conversation asks of a view (see `rollout.prompts.Conversation`), told by a demonstration."""

    opening: list[Message]
    following: str = ""

    def messages(self) -> list[Message]:
        return self.opening

    def next_turn(self) -> str:
        return self.following


def main(recipe_path: str | Path, overrides: Sequence[str] = (), out: Path | None = None) -> Path:
    """Make a warm-start policy and return its folder (weights, tokenizer, and the recipe that made it)."""
    recipe, console = load_recipe(recipe_path, overrides), Console(stderr=True)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    out = out or Path("runs") / recipe.name
    lessons = _lessons(recipe, console)
    # The tokenizer must exist before the model; the whole folder appears under its name only when the policy
    # is in it.
    building = out.with_name(out.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    if recipe.model.tiny is not None:
        lessons.save_tokenizer(building)
        recipe = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"tokenizer": str(building)})}
        )
    tokenizer = load_tokenizer(recipe.model)
    model = load_model(recipe, tokenizer)
    if recipe.model.tiny is None:
        tokenizer.save_pretrained(building)
    nn.Module.to(model, resolve_device(recipe.model))
    use_packed_attention(model)
    states = _demonstrated(lessons.demonstrations, ChatFormat(tokenizer, tokenizer_key(recipe.model)), recipe)
    samples = list(joined(states))
    count = sum(int(np.count_nonzero(np.diff(sample.is_answer.astype(np.int8)) == 1)) for sample in samples)
    sequences = f" in {len(samples)} sequences" if count > len(samples) else ""
    console.print(
        f"{recipe.name}: {count} states of expert play{sequences}, a vocabulary of {len(tokenizer)}",
        highlight=False,
    )
    clone(model, samples, recipe, console)
    _export(model, recipe, building, out)
    shutil.rmtree(out, ignore_errors=True)
    building.rename(out)
    return out


def _lessons(recipe: Recipe, console: Console) -> Lessons:
    lessons = BENCHMARKS.find(recipe.env.name).lessons
    if lessons is None:
        raise UserError(
            f"env.name: {recipe.env.name} brings no expert from whose play a policy could be cloned"
        )
    taught: Lessons = lessons(recipe, console)
    return taught


def _demonstrated(
    demonstrations: Iterable[Demonstration], chat: ChatFormat, recipe: Recipe
) -> Iterator[tuple[Ids, Ids]]:
    """(prompt, answer) of each state, as a policy with this recipe would meet it."""
    say = functools.cache(chat.answer)
    shown, conversation, step = _Shown([]), None, 1
    for demonstration in demonstrations:
        if not recipe.env.conversation:
            yield chat.prompt(demonstration.messages), say(demonstration.answer)
            continue
        if conversation is None or not demonstration.turns:
            shown = _Shown(demonstration.messages)
            conversation = Conversation(cast(AgentView, shown), chat, recipe.rollout.max_prompt_tokens)
            step = 1
        step += len(demonstration.turns)
        for turn in demonstration.turns:
            shown.following = turn.following
            conversation.go_on(say(turn.said), turn.observed)
        try:
            prompt, _ = conversation.prompt("an episode of the expert", step)
        except Overlong as error:
            raise UserError(str(error)) from None
        yield prompt, say(demonstration.answer)


def joined(states: Iterable[tuple[Ids, Ids]]) -> Iterator[ClonedSequence]:
    """(prompt, answer) of each state as samples: where a prompt goes on from the prompt and answer before it,
    both are one sequence, in which every token is once."""
    ids, is_answer = np.empty(0, dtype=np.int32), np.empty(0, dtype=bool)
    for prompt, answer in states:
        if len(ids) and not (len(prompt) > len(ids) and np.array_equal(prompt[: len(ids)], ids)):
            yield ClonedSequence(ids, is_answer)
            is_answer = is_answer[:0]
        grown = np.concatenate([prompt, answer])
        is_answer = np.concatenate(
            [is_answer, np.zeros(len(prompt) - len(is_answer), dtype=bool), np.ones(len(answer), dtype=bool)]
        )
        ids = grown
    if len(ids):
        yield ClonedSequence(ids, is_answer)


def clone(
    model: PreTrainedModel, samples: Sequence[ClonedSequence], recipe: Recipe, console: Console | None = None
) -> float:
    """Behaviour cloning on packed batches; returns the answer's mean cross-entropy (nats per token) over the
    last tenth of the steps."""
    section, weight = recipe.warm_start, model.get_output_embeddings().weight
    optimizer = Optimizer(model, section.lr, OptimizerSection(betas=(0.9, 0.98), weight_decay=0.05))
    batches, recent, start = _batches(samples, section.batch_tokens, recipe.seed), [], time.perf_counter()
    for step in range(section.steps):
        optimizer.lr = (
            section.lr
            * min(1.0, (step + 1) / 100)
            * max(0.05, 0.5 * (1 + math.cos(math.pi * step / section.steps)))
        )
        packed = _packed(next(batches), section.prompt_weight)
        tokens, positions, cu, row_position, row_weight, answer = (part.to(weight.device) for part in packed)
        hidden = hidden_states(model, tokens, positions, Packing.of(cu, weight.device))
        rows = linear_row_loss(
            hidden[row_position],
            weight,
            tokens[row_position + 1],
            functools.partial(_weighted_nll, row_weight),
        )
        rows.loss.backward()
        optimizer.step(rows.loss.detach(), step)
        if step >= int(section.steps * 0.9):
            recent.append(float(-rows.logp[answer].mean()))
        if console and (step + 1) % 100 == 0:
            value, seconds = float(-rows.logp[answer].mean()), time.perf_counter() - start
            console.print(
                f"  step {step + 1}/{section.steps}  answer cross-entropy {value:.3f}  {seconds:.0f} s",
                highlight=False,
            )
    return float(np.mean(recent))


def _weighted_nll(
    weight: torch.Tensor, logp: torch.Tensor, entropy: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    return -weight[rows] * logp


def _batches(
    samples: Sequence[ClonedSequence], batch_tokens: int, seed: int
) -> Iterator[list[ClonedSequence]]:
    """Endless batches of about `batch_tokens`, every sample once per pass; samples of similar length stand
    together, so attention pads little."""
    lengths = np.array([len(s.ids) for s in samples])
    for epoch in range(1 << 30):
        rng = generator(seed, "clone-order", epoch)
        order = rng.permutation(len(samples))
        for first in range(0, len(order), 2048):
            part = order[first : first + 2048]
            part = part[np.argsort(lengths[part], kind="stable")]
            cuts = np.flatnonzero(np.diff(lengths[part].cumsum() // batch_tokens)) + 1
            groups = np.split(part, cuts)
            for index in rng.permutation(len(groups)):
                yield [samples[int(i)] for i in groups[index]]


def _packed(batch: Sequence[ClonedSequence], prompt_weight: float) -> tuple[torch.Tensor, ...]:
    """(tokens[T], position_ids[T], cu_seqlens[N+1], row_position[R], row_weight[R], answer bool[R]); weights
    of answer rows sum to 1."""
    lengths = [len(s.ids) for s in batch]
    tokens = torch.from_numpy(np.concatenate([s.ids for s in batch]).astype(np.int64))
    positions = torch.cat([torch.arange(n) for n in lengths])
    cu = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    # A row predicts the token after it; the last of a sample none.
    is_answer = torch.from_numpy(np.concatenate([np.append(s.is_answer[1:], False) for s in batch]))
    scored = torch.ones(len(tokens), dtype=torch.bool)
    scored[cu[1:].long() - 1] = False
    if prompt_weight == 0:
        scored &= is_answer
    row_position = scored.nonzero()[:, 0]
    answer = is_answer[row_position]
    weight = torch.where(answer, 1.0 / answer.sum(), prompt_weight / (~answer).sum().clamp(min=1))
    return tokens, positions, cu, row_position, weight.float(), answer


def _export(model: PreTrainedModel, recipe: Recipe, folder: Path, name: Path) -> None:
    """Weights in 16 bits (half the size; they are trained in float32 again after loading) and the recipe of
    the policy's own play, from `name`."""
    model.set_attn_implementation("sdpa")
    (model.half() if recipe.model.dtype == "float32" else model).save_pretrained(folder)
    played = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"path": str(name), "tiny": None, "tokenizer": None})}
    )
    (folder / "recipe.yaml").write_text(dump_recipe(played), encoding="utf-8")
