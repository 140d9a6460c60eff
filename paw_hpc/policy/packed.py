"""Packed attention: any causal LM of `transformers` runs on [1, T] tokens of many samples, without padding in
its linear layers.

`transformers` lets a model's attention be replaced by name and hands unknown keyword arguments of `forward`
down to it. So one function, registered as `paw_packed`, and one object that travels with the call, a
`Packing`, say which tokens see which; no mask is ever built. With a `SlotCache` in the packing the same
function also serves generation (prefill writes the cache, `Decoding` reads it).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from paw_hpc.objective.prefixes import Prefixes
from paw_hpc.policy.cache import SlotCache, layer_of
from paw_hpc.system.errors import UserError

NAME = "paw_packed"
MAX_PADDING = 1.25
"""Samples of unlike lengths are padded to a common one for attention only; a bucket is cut before it holds
more than this times its own tokens."""

try:
    from torch.nn.attention import varlen
except ImportError:  # torch without a variable-length kernel
    varlen = None  # type: ignore[assignment]
_VARLEN_OPTIONS = (
    frozenset() if varlen is None else frozenset(inspect.signature(varlen.varlen_attn).parameters)
)
_VARLEN = {"window_size", "scale"} <= _VARLEN_OPTIONS


@dataclass(slots=True)
class _Bucket:
    """Samples of similar length, padded on the right for attention: under a causal mask no real token sees
    the padding."""

    samples: int
    length: int

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """[samples * length, heads, d] -> [samples, heads, length, d]."""
        return x.reshape(self.samples, self.length, *x.shape[1:]).transpose(1, 2)


@dataclass(slots=True)
class Packing:
    """Who sees whom: T tokens of N samples, each seeing itself and what stands before it in its own
    sample."""

    cu_seqlens: torch.Tensor  # int32[N+1]
    max_length: int
    buckets: list[_Bucket]
    # int64[P], token of each padded place of the concatenated buckets; None: identity (all lengths are equal)
    take: torch.Tensor | None
    restore: torch.Tensor | None  # int64[T], place of each token, or of one of its copies
    cache: SlotCache | None = None
    cache_index: torch.Tensor | None = None  # int64[T], slot * capacity + position (with a cache)
    copies: torch.Tensor | None = None
    """int64[A]: the samples are of copies of tokens that were computed once; which ones. None: they are the T
    tokens themselves."""
    answers: torch.Tensor | None = None  # int64[T], the copy of each token whose attention is its own
    calls: int = 0
    """How often attention was called with this packing."""

    @classmethod
    def of(
        cls,
        cu_seqlens: torch.Tensor,
        device: torch.device | str = "cpu",
        prefixes: Prefixes | None = None,
    ) -> Packing:
        """From offsets int32/int64[N+1] on the CPU; the index tensors are made on `device`.

        Args:
            prefixes: only some tokens are computed, and these are all that attention is given and answers
                (T is their number); the offsets are then the prefixes' own.
        """
        if prefixes is not None:
            packing, copies, answers = cls.of(prefixes.cu_seqlens), prefixes.attended, prefixes.answer
            padded = copies if packing.take is None else copies[packing.take]
            places = answers if packing.restore is None else packing.restore[answers]
            return replace(
                packing,
                cu_seqlens=packing.cu_seqlens.to(device),
                take=padded.to(device),
                restore=places.to(device),
                copies=copies.to(device),
                answers=answers.to(device),
            )
        cu = cu_seqlens.to(device="cpu", dtype=torch.long)
        lengths = cu[1:] - cu[:-1]
        if len(lengths) == 0 or bool((lengths <= 0).any()):
            raise ValueError("packing: needs at least one sample, and every sample at least one token")
        longest = int(lengths.max())
        total = int(cu[-1])
        if longest * len(lengths) == total:
            return cls(cu.int().to(device), longest, [_Bucket(len(lengths), longest)], None, None)
        buckets, take, restore, offset = [], [], torch.empty(total, dtype=torch.long), 0
        for samples in _similar(lengths):
            bucket = _Bucket(len(samples), int(lengths[samples[-1]]))
            within, last = torch.arange(bucket.length), lengths[samples, None] - 1
            tokens = cu[samples, None] + torch.minimum(within, last)
            places = offset + torch.arange(tokens.numel()).view_as(tokens)
            real = within <= last
            restore[tokens[real]] = places[real]
            take.append(tokens.flatten())
            buckets.append(bucket)
            offset += tokens.numel()
        return cls(cu.int().to(device), longest, buckets, torch.cat(take).to(device), restore.to(device))

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """query [T, heads, d], key and value [T, kv_heads, d] -> [T, heads, d]."""
        if self.cache is not None:
            assert self.cache_index is not None
            self.cache.write(layer_of(module), self.cache_index, key, value)
        gqa = query.shape[1] != key.shape[1]
        if use_varlen(query):
            cu, longest = self.cu_seqlens, self.max_length
            if self.copies is not None:
                query, key, value = (x.index_select(0, self.copies) for x in (query, key, value))
            # torch 2.11 shares key heads among query heads without being told.
            grouped: dict[str, Any] = {"enable_gqa": gqa} if "enable_gqa" in _VARLEN_OPTIONS else {}
            packed = varlen.varlen_attn(
                query, key, value, cu, cu, longest, longest, window_size=(-1, 0), scale=scale, **grouped
            )
            packed = cast(torch.Tensor, packed)
            return packed if self.answers is None else packed.index_select(0, self.answers)
        sizes = [bucket.samples * bucket.length for bucket in self.buckets]
        parts = [
            (x if self.take is None else x.index_select(0, self.take)).split(sizes)
            for x in (query, key, value)
        ]
        outputs = []
        for bucket, q, k, v in zip(self.buckets, *parts, strict=True):
            out = F.scaled_dot_product_attention(
                bucket.pad(q), bucket.pad(k), bucket.pad(v), is_causal=True, scale=scale, enable_gqa=gqa
            )
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return out if self.restore is None else out.index_select(0, self.restore)


def use_varlen(query: torch.Tensor) -> bool:
    """Whether attention of this query [T, heads, d] runs on torch's variable-length kernel: the one place
    where that is decided."""
    return (
        _VARLEN
        and query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
    )


class Attending(Protocol):
    """Who sees whom: what travels with a call of `hidden_states` and answers its attention (`Packing`,
    `Decoding`)."""

    calls: int
    max_length: int

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor: ...


def hidden_states(
    model: PreTrainedModel, tokens: torch.Tensor, position_ids: torch.Tensor, packing: Attending
) -> torch.Tensor:
    """Last hidden states [T, H] (before the LM head) of packed tokens int64[T], position_ids int64[T];
    differentiable."""
    body = getattr(model, model.base_model_prefix, model)
    packing.calls = 0
    output = body(input_ids=tokens[None], position_ids=position_ids[None], use_cache=False, packing=packing)
    if packing.calls != model.config.num_hidden_layers:
        raise UserError(
            f"{type(model).__name__}: attention ran {packing.calls} times in "
            f"{model.config.num_hidden_layers} layers; packing cannot serve it"
        )
    return output.last_hidden_state[0]


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make a causal LM run through `hidden_states`, with dropout off, and prove on two short samples that
    packing changes nothing.

    Raises:
        UserError: the architecture has layers, masks or a head that packed attention would get wrong.
    """
    # On a GPU cuDNN's attention is built anew for every shape, and almost every decoding step has a shape of
    # its own.
    torch.backends.cuda.enable_cudnn_sdp(False)
    name = type(model).__name__
    foreign = set(getattr(model.config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if foreign:
        raise UserError(
            f"{name}: layers of type {', '.join(sorted(foreign))} cannot run packed; full-attention models "
            "can"
        )
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise UserError(f"{name}: its LM head must be one matrix without bias")
    _disable_dropout(model)
    expected = _probe_logits(model)
    model.set_attn_implementation(NAME)
    error = (_packed_probe_logits(model) - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    if not error < (1e-3 if model.dtype == torch.float32 else 0.1):
        raise UserError(
            f"{name}: packed logits differ from its own by {float(error):.2g}; its positions, masks or "
            "head are of a kind not supported"
        )


def _similar(lengths: torch.Tensor) -> list[torch.Tensor]:
    """Cut samples, shortest first, into buckets that padding to their longest makes at most MAX_PADDING times
    larger."""
    order = torch.argsort(lengths, stable=True)
    longest = lengths[order].tolist()
    cuts, start, tokens = [0], 0, 0
    for i, length in enumerate(longest):
        if length * (i + 1 - start) > MAX_PADDING * (tokens + length):
            cuts.append(i)
            start, tokens = i, 0
        tokens += length
    return [order[a:b] for a, b in zip(cuts, [*cuts[1:], len(longest)], strict=True)]


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Attending | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What `transformers` calls: query [1, heads, T, d], key and value [1, kv_heads, T, d] -> ([1, T, heads,
    d], None)."""
    if packing is None:
        raise RuntimeError(
            f"{NAME}: the model was called without a packing; go through paw_hpc.policy.packed.hidden_states"
        )
    if sliding_window is not None and packing.max_length > sliding_window:
        raise UserError(
            f"a sample of {packing.max_length} tokens exceeds the sliding window of {sliding_window}; "
            "packed attention is full attention"
        )
    refused = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if refused or attention_mask is not None or dropout or kwargs.get("is_causal") is False:
        raise UserError(
            f"packed attention is causal, without mask, dropout or {', '.join(refused) or 'bias'}; this "
            "model asks for more"
        )
    packing.calls += 1
    out = packing.attend(
        module, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), scaling
    )
    return out[None], None


AttentionInterface.register(NAME, _attention)


def _disable_dropout(model: PreTrainedModel) -> None:
    """A log-prob of the update must be that of the scoring pass, so nothing here is random."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


_PROBE = ([1, 2, 3, 4, 5], [2, 3, 1])


@torch.no_grad()
def _probe_logits(model: PreTrainedModel) -> torch.Tensor:
    """float32[8, V]: the model's own logits of two short samples, one at a time."""
    device, size = model.device, int(model.config.vocab_size)
    samples = [torch.tensor([[i % size for i in ids]], device=device) for ids in _PROBE]
    return torch.cat([model(input_ids=ids, use_cache=False).logits[0].float() for ids in samples])


@torch.no_grad()
def _packed_probe_logits(model: PreTrainedModel) -> torch.Tensor:
    device, size = model.device, int(model.config.vocab_size)
    tokens = torch.tensor([i % size for ids in _PROBE for i in ids], device=device)
    position_ids = torch.tensor([i for ids in _PROBE for i in range(len(ids))], device=device)
    cu = torch.tensor([0, len(_PROBE[0]), len(_PROBE[0]) + len(_PROBE[1])])
    hidden = hidden_states(model, tokens, position_ids, Packing.of(cu, device))
    return (hidden @ model.get_output_embeddings().weight.T).float()
