"""What a conversation shares with its last turn is computed once, and changes nothing of what is sampled."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from paw_hpc.policy.cache import SlotCache
from paw_hpc.recipe import RolloutSection
from paw_hpc.rollout.engines import decoder
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.engines.local import LivePublisher, LocalEngine
from paw_hpc.rollout.engines.prefixes import KeptPrefixes
from tests.policy.models import MODELS, VOCABULARY
from tests.rollout.test_local_engine import engine_of, packed_model, word_tokenizer


def engine(name: str = "qwen2 tied", *, conversation: bool = True, **rollout: Any) -> LocalEngine:
    return LocalEngine(
        packed_model(name),
        word_tokenizer(),
        RolloutSection(**({"max_batch": 4} | rollout)),
        conversation=conversation,
    )


def talk(
    chosen: LocalEngine, episodes: int = 6, turns: int = 4, *, broken: bool = False
) -> list[list[Completion]]:
    """Conversations of several episodes at once, in which every prompt goes on from the last turn; `broken`:
    not always."""

    async def one(episode: int) -> list[Completion]:
        rng = np.random.default_rng(episode)
        prompt, said = rng.integers(2, VOCABULARY, 5 + episode).astype(np.int32), []
        for turn in range(turns):
            said.append(
                await chosen.generate(GenerationRequest(episode, prompt, 100 * episode + turn, 1.0, 6))
            )
            prompt = np.concatenate(
                [prompt, said[-1].ids, rng.integers(2, VOCABULARY, 1 + (episode + turn) % 7).astype(np.int32)]
            )
            if broken and turn == 1:
                prompt = np.concatenate([prompt[:3], prompt[6:]])
        chosen.leave(episode)
        return said

    async def all_of_them() -> list[list[Completion]]:
        for episode in range(episodes):
            chosen.join(episode)
        return list(await asyncio.gather(*map(one, range(episodes))))

    return asyncio.run(all_of_them())


def assert_same(one: list[list[Completion]], other: list[list[Completion]]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        for mine, expected in zip(ours, theirs, strict=True):
            assert mine.ids.tolist() == expected.ids.tolist()
            np.testing.assert_allclose(mine.logprobs, expected.logprobs, atol=2e-6)
            np.testing.assert_allclose(mine.entropies, expected.entropies, atol=5e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batching", ["deterministic", "eager"])
def test_the_same_is_sampled_from_fewer_tokens(name: str, batching: str) -> None:
    kept, anew = engine(name, batching=batching), engine(name, batching=batching, conversation=False)
    assert_same(talk(kept), talk(anew))
    ours, theirs = kept.drain_metrics(), anew.drain_metrics()
    assert theirs["rollout/kept_tokens"] == 0 < ours["rollout/kept_tokens"]
    assert ours["rollout/prefill_tokens"] + ours["rollout/kept_tokens"] == theirs["rollout/prefill_tokens"]
    assert ours["rollout/prefill_tokens"] < 0.5 * theirs["rollout/prefill_tokens"]
    assert set(kept.drain_metrics().values()) == {0.0}, "each is told once"
    assert kept.decoder.prefixes is not None and len(kept.decoder.prefixes) == 0, (
        "an episode that has ended keeps nothing"
    )


def test_every_turn_but_the_first_reads_what_is_new_alone() -> None:
    chosen = engine()
    said = talk(chosen, episodes=1)
    [turns] = said
    new = [5] + [1 + 1 + turn % 7 for turn in range(3)]  # the last token of a response, and what follows it
    assert chosen.drain_metrics()["rollout/prefill_tokens"] == sum(new), [len(turn.ids) for turn in turns]


def test_a_prompt_that_begins_otherwise_is_read_anew() -> None:
    assert_same(talk(engine(), broken=True), talk(engine(conversation=False), broken=True))


def test_other_weights_begin_anew() -> None:
    """The control: keys and values of the weights before would be taken for those of now."""
    results = []
    for publishes in (True, False):
        chosen = engine()
        prompt = np.arange(2, 30, dtype=np.int32)

        def turn(prompt: np.ndarray, chosen: LocalEngine = chosen) -> Completion:
            async def ask() -> Completion:
                chosen.join(0)
                return await chosen.generate(GenerationRequest(0, prompt, 1, 1.0, 4))

            return asyncio.run(ask())

        following = np.concatenate([prompt, turn(prompt).ids, np.arange(3, 9, dtype=np.int32)])
        with torch.no_grad():
            for parameter in chosen.decoder.model.parameters():
                parameter.mul_(1.1)
        if publishes:
            LivePublisher(chosen).publish(1)
        results.append(turn(following).logprobs)
        fresh = engine(conversation=False)
        with torch.no_grad():
            for parameter in fresh.decoder.model.parameters():
                parameter.mul_(1.1)
        expected = fresh.generate_batch([GenerationRequest(0, following, 1, 1.0, 4)])[0].logprobs
        same = len(results[-1]) == len(expected) and np.allclose(results[-1], expected, atol=1e-5)
        assert same is publishes


def test_nobody_s_episodes_are_not_kept() -> None:
    chosen = engine()
    chosen.generate_batch([GenerationRequest(0, np.arange(2, 20, dtype=np.int32), 1, 1.0, 4)])
    assert chosen.decoder.prefixes is not None and len(chosen.decoder.prefixes) == 0
    assert engine_of(packed_model()).decoder.prefixes is None, "prompts of a window are not kept"


def test_what_is_kept_is_bounded_and_the_longest_unused_goes_first() -> None:
    cache = SlotCache(1, 64)
    cache.write(0, torch.arange(20), torch.ones(20, 1, 2), torch.ones(20, 1, 2))
    kept = KeptPrefixes(25)
    ids = np.arange(10, dtype=np.int32)
    for episode in range(3):
        kept.keep(episode, ids, cache, 0)
    assert [kept.find(episode, np.arange(11, dtype=np.int32)) is not None for episode in range(3)] == [
        False,
        True,
        True,
    ]
    kept.keep(3, np.arange(26, dtype=np.int32), cache, 0)
    assert len(kept) == 2 and kept.find(1, ids) is None, "a prompt has at least one token that is not known"
    kept.forget(1)
    kept.keep(4, ids, cache, 0)
    assert len(kept) == 2
    kept.clear()
    assert len(kept) == 0


def test_what_follows_is_read_in_passes_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    right = decoder.Continuing

    def counted(cache: SlotCache, slots: Any, known: Any, new: list[int], device: torch.device) -> Any:
        sizes.append(sum(new))
        return right(cache, slots, known, new, device)

    monkeypatch.setattr(decoder, "Continuing", counted)
    whole, made = talk(engine()), list(sizes)
    sizes.clear()
    monkeypatch.setitem(decoder.PREFILL_TOKENS, "cpu", 10)
    assert_same(talk(engine()), whole)
    assert sum(sizes) == sum(made) and max(sizes) <= 10 < max(made) and len(sizes) > len(made)
