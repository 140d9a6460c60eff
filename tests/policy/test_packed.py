"""Packed attention against the models' own, one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from paw_hpc.policy.packed import Packing, hidden_states, use_packed_attention, use_varlen
from paw_hpc.system.errors import UserError
from tests.policy.models import MODELS, SIZES, VOCABULARY, random_model

LENGTHS = {"mixed": [7, 1, 40, 12, 41, 3], "equal": [9, 9, 9], "single": [17]}


def sequences(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in lengths]


def packed_logits(
    model: PreTrainedModel,
    samples: list[torch.Tensor],
    *,
    position_ids: torch.Tensor | None = None,
    cu: torch.Tensor | None = None,
) -> torch.Tensor:
    if cu is None:
        cu = torch.tensor([0, *(len(s) for s in samples)]).cumsum(0)
    if position_ids is None:
        position_ids = torch.cat([torch.arange(len(s)) for s in samples])
    device = model.device
    hidden = hidden_states(
        model, torch.cat(samples).to(device), position_ids.to(device), Packing.of(cu, device)
    )
    return hidden @ model.get_output_embeddings().weight.T


def own_logits(model: PreTrainedModel, samples: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([model(input_ids=s[None].to(model.device)).logits[0] for s in samples])


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_packed_logits_are_those_of_each_sequence_alone(name: str, lengths: list[int]) -> None:
    model, samples = random_model(name), sequences(lengths)
    expected = own_logits(model, samples)
    use_packed_attention(model)
    torch.testing.assert_close(packed_logits(model, samples), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_running_positions_and_leaking_sequences_are_seen_by_that_comparison() -> None:
    model, samples = random_model("qwen2 tied"), sequences([7, 5, 12])
    expected = own_logits(model, samples)
    use_packed_attention(model)
    for wrong in (
        {"position_ids": torch.arange(24) // 2},
        {"cu": torch.tensor([0, 24])},
        {"cu": torch.tensor([0, 8, 12, 24])},
    ):
        assert (packed_logits(model, samples, **wrong) - expected).abs().max() > 1e-2


def test_gradients_are_those_of_each_sequence_alone() -> None:
    samples = sequences(LENGTHS["mixed"])
    ours, own = random_model("qwen3"), random_model("qwen3")
    use_packed_attention(ours)
    packed_logits(ours, samples).square().mean().backward()
    own_logits(own, samples).square().mean().backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), own.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6 * float(b.grad.abs().max()), msg=name)


@torch.no_grad()
def test_what_follows_a_sequence_leaves_its_hidden_states_unchanged() -> None:
    model = random_model("qwen2 tied")
    use_packed_attention(model)
    short = sequences([20, 31, 8])
    long = [torch.cat([s, torch.randint(0, VOCABULARY, (13,))]) for s in short]
    kept = torch.cat([torch.arange(len(s) + 13) < len(s) for s in short])
    torch.testing.assert_close(
        packed_logits(model, long)[kept], packed_logits(model, short), rtol=1e-6, atol=1e-6
    )


def test_padding_of_attention_is_bounded() -> None:
    lengths = torch.randint(1, 400, (300,), generator=torch.Generator().manual_seed(0))
    packing = Packing.of(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
    padded = sum(b.samples * b.length for b in packing.buckets)
    assert padded <= 1.25 * int(lengths.sum()) and len(packing.buckets) < 20
    assert packing.take is not None and packing.restore is not None
    assert torch.equal(packing.take[packing.restore], torch.arange(int(lengths.sum())))


@pytest.mark.parametrize("cu", [[0], [0, 3, 3], [0, 5, 4]])
def test_empty_samples_are_refused(cu: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Packing.of(torch.tensor(cu))


def small(**more: object) -> dict:
    return {k: v for k, v in SIZES.items() if k != "max_position_embeddings"} | more


REFUSED = {
    "head with bias": (lambda: PhiForCausalLM(PhiConfig(**SIZES)), "without bias"),
    "recurrent": (
        lambda: MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2)),
        "Mamba",
    ),
    "softcap": (lambda: Gemma2ForCausalLM(Gemma2Config(**small(head_dim=8))), "softcap"),
}


@pytest.mark.parametrize("build,reason", REFUSED.values(), ids=REFUSED.keys())
def test_models_that_packing_would_get_wrong_are_refused(build, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        use_packed_attention(build())


@torch.no_grad()
def test_a_sliding_window_serves_samples_within_it_and_refuses_longer_ones() -> None:
    model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)).eval()
    samples = sequences([16, 9])
    expected = own_logits(model, samples)
    use_packed_attention(model)
    torch.testing.assert_close(packed_logits(model, samples), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="sliding window of 16"):
        packed_logits(model, sequences([17]))


def test_dropout_is_off_even_in_training_mode() -> None:
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).train()
    use_packed_attention(model)
    samples = sequences([9, 4])
    assert torch.equal(packed_logits(model, samples), packed_logits(model, samples))


def test_the_model_cannot_be_called_without_a_packing_by_mistake() -> None:
    model = random_model("llama")
    use_packed_attention(model)
    with pytest.raises(RuntimeError, match="without a packing"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the variable-length kernel needs a GPU")
@torch.no_grad()
def test_variable_length_kernel_agrees_with_padded_attention() -> None:
    model, samples = random_model("qwen3").to("cuda", torch.bfloat16), sequences(LENGTHS["mixed"])
    expected = own_logits(model, samples).float()
    use_packed_attention(model)
    assert use_varlen(torch.zeros(1, 4, 16, device="cuda", dtype=torch.bfloat16))
    error = (packed_logits(model, samples).float() - expected).abs().max() / expected.abs().max()
    assert error < 0.03
