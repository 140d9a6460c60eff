"""Batched sampling over a slot cache: the synchronous core of the in-process engine.

Prompts enter packed (no padding), every step then extends all running samples by one token, and a finished
sample's slot is taken by the last one, so that the running samples always are the first slots. What a request
samples depends on its own seed alone, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from paw_hpc.policy.cache import SlotCache
from paw_hpc.policy.packed import Packing, hidden_states
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.engines.graphs import SLOTS_STEP, DecodingSteps
from paw_hpc.rollout.engines.prefixes import Continuing, KeptPrefixes, Prefix
from paw_hpc.rollout.engines.stopping import StopStrings, eos_ids
from paw_hpc.system.errors import NOT_FINITE, TrainingError

T = TypeVar("T")
PREFILL_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Prompt tokens of one forward pass: bounds its activations, and on a CPU keeps them in the cache."""
CAPACITY_STEP = 64
"""Positions per slot are rounded up to a multiple of this."""


@dataclass(slots=True)
class _Running:
    """One request in its slot."""

    key: int
    request: GenerationRequest
    uniforms: np.ndarray  # float64[n], one draw for each token that may still be sampled at most
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


class Decoder:
    """Generates with a model that went through `use_packed_attention`.

    Args:
        model: shared with the trainer; its live weights are used.
        tokenizer: its end-of-sequence token and those of the model's generation config end a response.
        slots: samples that run together (bounds the cache: slots x positions x layers x kv_heads x head_dim x
            2).
        stop: strings that end a response once it contains one; they are kept.
        prefixes: where finished turns are kept for the prompts that go on from them; None: every prompt is
            read from its beginning.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        slots: int,
        stop: Sequence[str] = (),
        prefixes: KeptPrefixes | None = None,
    ) -> None:
        self.model, self.slots = model, slots
        self.eos_ids = eos_ids(model, tokenizer)
        self.stop = StopStrings(tokenizer, stop)
        self.context = int(getattr(model.config, "max_position_embeddings", None) or 2**31)
        self.weight_version = 0
        self.prefixes = prefixes
        self.prefill_tokens = self.kept_tokens = 0
        """Prompt tokens that were read, and that were known, since whoever asks set these to 0."""
        self._steps = DecodingSteps(model)
        self.release()

    def release(self) -> None:
        """Drop the cache and whatever was running."""
        self._steps.forget()
        if self.prefixes is not None:
            self.prefixes.clear()
        self._cache = SlotCache(0, 0)
        self._running: list[_Running] = []
        self._lengths = np.zeros(self.slots, dtype=np.int64)  # positions in the cache, per slot
        self._temperatures = np.ones(self.slots, dtype=np.float32)
        self._last = np.zeros(self.slots, dtype=np.int64)  # newest token, not yet in the cache

    @property
    def live(self) -> int:
        return len(self._running)

    def check(self, request: GenerationRequest) -> None:
        """Raises ValueError for a request that cannot be served."""
        length = len(request.prompt_ids)
        if length == 0:
            raise ValueError(f"episode {request.episode}: an empty prompt")
        if length >= self.context:
            raise ValueError(
                f"episode {request.episode}: a prompt of {length} tokens leaves no room in the model's "
                f"context of {self.context}"
            )
        if request.max_tokens < 1 or request.temperature < 0:
            raise ValueError(
                f"episode {request.episode}: needs max_tokens >= 1 and temperature >= 0, got "
                f"{request.max_tokens} and {request.temperature}"
            )

    @torch.inference_mode()
    def admit(self, requests: Sequence[tuple[int, GenerationRequest]]) -> list[tuple[int, Completion]]:
        """Read the prompts of (key, request) pairs, at most `slots - live`, and sample their first tokens.
        Returns what is already complete."""
        for _, request in requests:
            self.check(request)
        if self.live + len(requests) > self.slots:
            raise ValueError(f"{len(requests)} requests for {self.slots - self.live} free slots")
        if not requests:
            return []
        self._reserve(self.live + len(requests), max(len(r.prompt_ids) + self._limit(r) for _, r in requests))
        done, anew = [], list[tuple[int, GenerationRequest]]()
        known: list[tuple[tuple[int, GenerationRequest], Prefix]] = []
        for each in requests:
            prefix = (
                None if self.prefixes is None else self.prefixes.find(each[1].episode, each[1].prompt_ids)
            )
            anew.append(each) if prefix is None else known.append((each, prefix))
        limit = PREFILL_TOKENS[self.model.device.type]
        for chunk in _chunks(anew, [len(request.prompt_ids) for _, request in anew], limit):
            done += self._prefill(chunk)
        for part in _chunks(
            known, [len(request.prompt_ids) - len(prefix.ids) for (_, request), prefix in known], limit
        ):
            done += self._continue(part)
        return done

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Completion]]:
        """One more token for every running sample. Returns (key, completion) of those that this ends."""
        size = self.live
        positions = torch.from_numpy(self._lengths[:size].copy())
        hidden = self._steps.hidden(
            self._cache, torch.from_numpy(self._last[:size].copy()), positions, int(positions.max()) + 1
        )
        self._lengths[:size] += 1
        return self._extend(hidden, 0)

    def _limit(self, request: GenerationRequest) -> int:
        return min(request.max_tokens, self.context - len(request.prompt_ids))

    def _reserve(self, slots: int, positions: int) -> None:
        """The cache grows with what is asked for: its zeros are real memory."""
        if slots > self._cache.slots or positions > self._cache.capacity:
            slots = min(max(-(-slots // SLOTS_STEP) * SLOTS_STEP, self._cache.slots), self.slots)
            capacity = min(
                max(-(-positions // CAPACITY_STEP) * CAPACITY_STEP, self._cache.capacity), self.context
            )
            self._steps.forget()
            self._cache.grow(slots, capacity, self.live, int(self._lengths[: self.live].max(initial=0)))

    def _prefill(self, chunk: Sequence[tuple[int, GenerationRequest]]) -> list[tuple[int, Completion]]:
        first, device = self.live, self.model.device
        lengths = np.array([len(r.prompt_ids) for _, r in chunk])
        tokens = torch.from_numpy(np.concatenate([r.prompt_ids for _, r in chunk]).astype(np.int64))
        cu = np.concatenate([[0], lengths.cumsum()])
        positions = np.arange(cu[-1]) - np.repeat(cu[:-1], lengths)
        slots = np.repeat(np.arange(first, first + len(chunk)), lengths)
        packing = Packing.of(torch.from_numpy(cu), device)
        packing.cache, packing.cache_index = (
            self._cache,
            torch.from_numpy(slots * self._cache.capacity + positions).to(device),
        )
        hidden = hidden_states(self.model, tokens.to(device), torch.from_numpy(positions).to(device), packing)
        self.prefill_tokens += len(tokens)
        return self._begin(chunk, hidden.index_select(0, torch.from_numpy(cu[1:] - 1).to(device)))

    def _continue(
        self, known: Sequence[tuple[tuple[int, GenerationRequest], Prefix]]
    ) -> list[tuple[int, Completion]]:
        """Read what follows the known beginnings of prompts."""
        device, slots = self.model.device, range(self.live, self.live + len(known))
        for slot, (_, prefix) in zip(slots, known, strict=True):
            for layer, (key, value) in prefix.layers.items():
                self._cache.restore(layer, slot, key, value)
        starts = [len(prefix.ids) for _, prefix in known]
        rest = [request.prompt_ids[start:] for ((_, request), _), start in zip(known, starts, strict=True)]
        positions = np.concatenate(
            [start + np.arange(len(ids)) for start, ids in zip(starts, rest, strict=True)]
        )
        tokens = torch.from_numpy(np.concatenate(rest).astype(np.int64)).to(device)
        packing = Continuing(self._cache, slots, starts, [len(ids) for ids in rest], device)
        hidden = hidden_states(self.model, tokens, torch.from_numpy(positions).to(device), packing)
        ends = np.cumsum([len(ids) for ids in rest]) - 1
        self.kept_tokens += sum(starts)
        self.prefill_tokens += len(tokens)
        return self._begin(
            [each for each, _ in known], hidden.index_select(0, torch.from_numpy(ends).to(device))
        )

    def _begin(
        self, chunk: Sequence[tuple[int, GenerationRequest]], hidden: torch.Tensor
    ) -> list[tuple[int, Completion]]:
        """The first tokens of requests whose prompts have been read into the next free slots, from their last
        hidden states [n, H]."""
        first = self.live
        self._lengths[first : first + len(chunk)] = [len(r.prompt_ids) for _, r in chunk]
        self._temperatures[first : first + len(chunk)] = [r.temperature for _, r in chunk]
        self._running += [
            _Running(key, r, np.random.default_rng(r.seed).random(self._limit(r))) for key, r in chunk
        ]
        return self._extend(hidden, first)

    def _extend(self, hidden: torch.Tensor, first: int) -> list[tuple[int, Completion]]:
        """Sample a token for the slots from `first` on, from their last hidden states [n, H]; take out those
        that are complete."""
        running = self._running[first:]
        uniforms = np.array([r.uniforms[len(r.ids)] for r in running])
        logits = self.model.get_output_embeddings()(hidden)
        ids, logprobs, entropies = sample(logits, self._temperatures[first : self.live], uniforms)
        if not np.isfinite(logprobs).all():
            raise TrainingError(NOT_FINITE)
        self._last[first : self.live] = ids
        done, gone = [], []
        for slot, (r, token, logprob, entropy) in enumerate(
            zip(running, ids.tolist(), logprobs.tolist(), entropies.tolist(), strict=True), first
        ):
            r.ids.append(token)
            r.logprobs.append(logprob)
            r.entropies.append(entropy)
            ended = token in self.eos_ids or self.stop.ends(r.ids)
            if ended or len(r.ids) == len(r.uniforms):
                done.append((r.key, self._completion(r, ended)))
                gone.append(slot)
                self._keep(r, slot)
        if gone:
            self._compact(gone)
        return done

    def _keep(self, r: _Running, slot: int) -> None:
        """The last token of a response is not in the cache: nothing was computed from it."""
        if self.prefixes is not None:
            ids = np.concatenate([r.request.prompt_ids, np.array(r.ids[:-1], dtype=np.int32)])
            self.prefixes.keep(r.request.episode, ids, self._cache, slot)

    def _completion(self, r: _Running, ended: bool) -> Completion:
        numbers = np.array(r.logprobs, dtype=np.float32), np.array(r.entropies, dtype=np.float32)
        return Completion(
            np.array(r.ids, dtype=np.int32), *numbers, weight_version=self.weight_version, finished=ended
        )

    def _compact(self, gone: Sequence[int]) -> None:
        """Move the last running samples into the freed slots (ascending), so that the running ones are the
        first again."""
        size = self.live - len(gone)
        freed = set(gone)
        target = np.array([slot for slot in gone if slot < size], dtype=np.int64)
        source = np.array([slot for slot in range(size, self.live) if slot not in freed], dtype=np.int64)
        if len(target):
            device = self.model.device
            length = int(self._lengths[source].max())
            self._cache.move(torch.from_numpy(source).to(device), torch.from_numpy(target).to(device), length)
            for array in (self._lengths, self._temperatures, self._last):
                array[target] = array[source]
            for to, origin in zip(target.tolist(), source.tolist(), strict=True):
                self._running[to] = self._running[origin]
        del self._running[size:]


def sample(
    logits: torch.Tensor, temperatures: np.ndarray, uniforms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Invert the cumulative distribution at one uniform number per row.

    Args:
        logits: [B, V], any float type; computed with in float32, summed up in float64.
        temperatures: float32[B]; 0 takes the most probable token and reports at temperature 1.
        uniforms: float64[B] in [0, 1).

    Returns:
        ids int64[B], log-probs float64[B] and entropies float64[B] (nats) after temperature.
    """
    logits = logits.float()
    greedy = temperatures == 0
    divisor = np.where(greedy, np.float32(1.0), temperatures)
    if (divisor != 1).any():
        logits = logits / torch.from_numpy(divisor).to(logits.device)[:, None]
    logp = torch.log_softmax(logits, dim=-1)
    p = logp.exp()
    cumulative = p.cumsum(-1, dtype=torch.float64)
    threshold = torch.from_numpy(uniforms).to(logits.device)[:, None] * cumulative[:, -1:]
    # right=True: a token of probability 0 is never the first whose cumulative exceeds the threshold.
    ids = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=logits.shape[-1] - 1)[:, 0]
    if greedy.any():
        ids = torch.where(torch.from_numpy(greedy).to(logits.device), logits.argmax(-1), ids)
    entropy = -(p * logp).sum(-1)
    found = (
        torch.stack([ids.double(), logp.gather(-1, ids[:, None])[:, 0].double(), entropy.double()])
        .cpu()
        .numpy()
    )
    return found[0].astype(np.int64), found[1], found[2]


def _chunks(items: Sequence[T], tokens: Sequence[int], most: int) -> list[list[T]]:
    """Cut in order into runs of at most `most` tokens (an item with more stands alone)."""
    chunks: list[list[T]] = []
    room = 0
    for item, size in zip(items, tokens, strict=True):
        if not chunks or size > room:
            chunks.append([])
            room = most
        chunks[-1].append(item)
        room -= size
    return chunks
