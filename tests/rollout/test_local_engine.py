"""The in-process engine against `transformers.generate`, the trainer's own log-probs, and its own promises
about seeds and batches."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import PreTrainedModel

from paw_hpc.kernels import linear_logprob_entropy
from paw_hpc.objective.plan import plan
from paw_hpc.policy.packed import Packing, hidden_states, use_packed_attention
from paw_hpc.recipe import RolloutSection
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.engines.decoder import Decoder, sample
from paw_hpc.rollout.engines.local import LocalEngine
from paw_hpc.rollout.engines.stopping import StopStrings
from paw_hpc.system.errors import TrainingError
from tests.factories import random_pool
from tests.policy.models import MODELS, VOCABULARY, model_folder, policy_from, random_model, word_tokenizer


def packed_model(name: str = "qwen2 tied") -> PreTrainedModel:
    model = random_model(name)
    use_packed_attention(model)
    return model


def engine_of(model: PreTrainedModel, **rollout: object) -> LocalEngine:
    return LocalEngine(model, word_tokenizer(), RolloutSection(**({"max_batch": 8} | rollout)))  # type: ignore[arg-type]


def requests(
    count: int, *, temperature: float = 1.0, max_tokens: int = 12, seed: int = 0
) -> list[GenerationRequest]:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(2, VOCABULARY, rng.integers(1, 30)).astype(np.int32) for _ in range(count)]
    return [GenerationRequest(i, p, 1000 + i, temperature, max_tokens) for i, p in enumerate(prompts)]


def ids(completions: Sequence[Completion]) -> list[list[int]]:
    return [c.ids.tolist() for c in completions]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_ids_are_those_of_transformers(name: str) -> None:
    own, engine = random_model(name), engine_of(packed_model(name), max_batch=4)
    asked, expected = requests(10, temperature=0.0, max_tokens=20), []
    for r in asked:
        prompt = torch.from_numpy(r.prompt_ids.astype(np.int64))[None]
        options = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": -1, "pad_token_id": 0}
        expected.append(
            own.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[
                0, prompt.shape[1] :
            ].tolist()
        )
    engine.decoder.eos_ids = frozenset({expected[0][4]})
    cut = [
        next((e[: i + 1] for i, token in enumerate(e) if token in engine.decoder.eos_ids), e)
        for e in expected
    ]
    completions = engine.generate_batch(asked)
    assert ids(completions) == cut
    assert [c.finished for c in completions] == [c[-1] in engine.decoder.eos_ids for c in cut]
    assert {c.finished for c in completions} == {True, False}


def test_memory_that_was_never_written_is_never_seen() -> None:
    asked = requests(10)
    expected = ids(engine_of(packed_model()).generate_batch(asked))
    torch.use_deterministic_algorithms(True)  # torch then fills new memory with NaN
    try:
        assert torch.empty(1).isnan()
        assert ids(engine_of(packed_model()).generate_batch(asked)) == expected
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_earlier_requests_left_in_the_cache_is_never_seen() -> None:
    engine, asked = engine_of(packed_model()), requests(10)
    expected = ids(engine.generate_batch(asked))
    with torch.inference_mode():
        for store in (s for stores in engine.decoder._cache.layers.values() for s in stores):
            store.fill_(1e4)
    assert ids(engine.generate_batch(asked)) == expected


def test_a_policy_that_is_not_finite_is_an_error_and_not_a_sample() -> None:
    model, asked = packed_model(), requests(4)
    engine, weight = engine_of(model), next(model.parameters())
    expected, sound = ids(engine.generate_batch(asked)), weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"not finite.*lower optimizer\.lr"):
        engine.generate_batch(asked)
    with torch.no_grad():
        weight.copy_(sound)
    assert ids(engine.generate_batch(asked)) == expected


@pytest.mark.parametrize("temperature", [1.0, 0.4, 0.0])
def test_logprobs_and_entropies_are_those_of_a_scoring_pass(temperature: float) -> None:
    model = packed_model("qwen3")
    asked = requests(12, temperature=temperature)
    completions = engine_of(model).generate_batch(asked)
    samples = [np.concatenate([r.prompt_ids, c.ids]) for r, c in zip(asked, completions, strict=True)]
    cu = torch.tensor([0, *map(len, samples)]).cumsum(0)
    tokens = torch.from_numpy(np.concatenate(samples).astype(np.int64))
    positions = torch.cat([torch.arange(len(s)) for s in samples])
    starts = [int(cu[i]) + len(r.prompt_ids) - 1 for i, r in enumerate(asked)]
    rows = torch.cat([torch.arange(s, s + len(c.ids)) for s, c in zip(starts, completions, strict=True)])
    with torch.no_grad():
        hidden = hidden_states(model, tokens, positions, Packing.of(cu))[rows]
        logp, entropy = linear_logprob_entropy(
            hidden, model.get_output_embeddings().weight, tokens[rows + 1], temperature=temperature or 1.0
        )
    np.testing.assert_allclose(
        np.concatenate([c.logprobs for c in completions]), logp.numpy(), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        np.concatenate([c.entropies for c in completions]), entropy.numpy(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainers_old_log_probs_are_those_that_the_engine_reported(
    checkpointing: bool, tmp_path: Path
) -> None:
    """The policy's own live model, in training mode, before and after an update."""
    policy = policy_from(
        model_folder(tmp_path), **{"rollout.temperature": 0.8, "model.gradient_checkpointing": checkpointing}
    )
    engine, pool = engine_of(policy.model), random_pool(0, prompt=(5, 60))
    asked = [GenerationRequest(n, t.prompt_ids, n, 0.8, 10) for n, t in enumerate(pool.transitions)]
    seen = []
    for update in range(2):
        for transition, answer in zip(pool.transitions, engine.generate_batch(asked), strict=True):
            transition.response_ids, transition.response_logprobs = answer.ids, answer.logprobs
            assert answer.entropies is not None
            seen.append(answer.entropies)
        scores = policy.score(pool)
        reported = np.concatenate([t.response_logprobs for t in pool.transitions])
        np.testing.assert_allclose(reported, scores.old_logp.numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            np.concatenate(seen[-len(pool) :]), scores.entropy.numpy(), rtol=1e-5, atol=1e-5
        )
        policy.update(plan(pool, scores, policy.recipe, update).batch, update)
    stale = policy.score(pool).old_logp.numpy()
    assert np.abs(stale - reported).max() > 1e-3  # the comparison would notice other weights


def test_what_a_request_samples_depends_on_its_seed_and_not_on_its_neighbours() -> None:
    model, asked = packed_model(), requests(20)
    together = ids(engine_of(model, max_batch=32).generate_batch(asked))
    assert ids(engine_of(model, max_batch=3).generate_batch(asked)) == together
    order = np.random.default_rng(1).permutation(20)
    shuffled = engine_of(model, max_batch=7).generate_batch([asked[i] for i in order])
    assert [ids(shuffled)[list(order).index(i)] for i in range(20)] == together
    reseeded = [
        GenerationRequest(r.episode, r.prompt_ids, r.seed + 1, r.temperature, r.max_tokens) for r in asked
    ]
    assert ids(engine_of(model).generate_batch(reseeded)) != together


def test_sampled_frequencies_are_the_softmax() -> None:
    logits = 2.0 * torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    logits[0, 3] = -torch.inf
    uniforms = np.random.default_rng(0).random(40_000)
    for temperature in (1.0, 0.5):
        drawn, _, _ = sample(
            logits.expand(40_000, 12), np.full(40_000, temperature, dtype=np.float32), uniforms
        )
        counts = np.bincount(drawn, minlength=12)
        possible = np.arange(12) != 3
        expected = torch.softmax(logits[0].double() / temperature, 0).numpy() * 40_000
        assert counts[3] == 0
        assert chisquare(counts[possible], expected[possible]).pvalue > 0.001
        assert chisquare(counts[possible], expected[possible][::-1]).pvalue < 1e-6


def test_the_ends_of_the_unit_interval_never_draw_an_impossible_token() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    drawn, _, _ = sample(logits, np.ones(3, dtype=np.float32), np.array([0.0, 0.5, 1.0 - 2**-53]))
    assert drawn.tolist() == [1, 3, 3]


def test_first_tokens_over_many_seeds_follow_the_model() -> None:
    model, prompt = packed_model(), np.array([5, 9, 11], dtype=np.int32)
    asked = [GenerationRequest(i, prompt, i, 1.0, 1) for i in range(4000)]
    drawn = [c.ids[0] for c in engine_of(model, max_batch=1000).generate_batch(asked)]
    p = (
        torch.softmax(
            random_model("qwen2 tied")(torch.from_numpy(prompt.astype(np.int64))[None])
            .logits[0, -1]
            .double(),
            0,
        )
        .detach()
        .numpy()
    )
    observed, common = np.bincount(drawn, minlength=VOCABULARY), p * 4000 > 5
    rest = [observed[~common].sum()] if (~common).any() else []
    expected = [p[~common].sum() * 4000] if (~common).any() else []
    assert chisquare([*observed[common], *rest], [*(4000 * p[common]), *expected]).pvalue > 0.001


def test_max_tokens_cut_and_the_context_is_a_limit() -> None:
    engine = engine_of(packed_model())
    engine.decoder.eos_ids = frozenset()
    short = GenerationRequest(0, np.array([3], dtype=np.int32), 0, 1.0, 5)
    near_the_end = GenerationRequest(1, np.full(250, 3, dtype=np.int32), 0, 1.0, 50)
    answers = engine.generate_batch([short, near_the_end])
    assert [len(a.ids) for a in answers] == [5, 6] and not any(a.finished for a in answers)
    for prompt, reason in (
        (np.full(256, 3, dtype=np.int32), "context of 256"),
        (np.empty(0, dtype=np.int32), "empty prompt"),
    ):
        with pytest.raises(ValueError, match=reason):
            engine.generate_batch([GenerationRequest(0, prompt, 0, 1.0, 5)])


def test_a_stop_string_ends_the_response_and_stays_in_it() -> None:
    model, asked = packed_model(), requests(12, max_tokens=30)
    free = engine_of(model).generate_batch(asked)
    pair = next(f"w{a} w{b}" for c in free for a, b in zip(c.ids[3:], c.ids[4:-1], strict=False))
    stopped = engine_of(model, stop=(pair,)).generate_batch(asked)
    tokenizer, cut = word_tokenizer(), 0
    for before, after in zip(free, stopped, strict=True):
        assert before.ids[: len(after.ids)].tolist() == after.ids.tolist()
        text = tokenizer.decode(before.ids)
        if pair in text:
            cut += 1
            assert (
                tokenizer.decode(after.ids).endswith(pair)
                and pair not in tokenizer.decode(after.ids[:-1])
                and after.finished
            )
        else:
            assert len(after.ids) == len(before.ids)
    assert cut


def test_stop_strings_that_span_tokens_and_end_in_any_character() -> None:
    tokenizer = word_tokenizer()
    for strings, text, ends in [
        (("7 w8",), "w2 w7 w8", True),
        (("w1 ",), "w1 w2", True),
        (("w30",), "w3 w0", False),
        (("w8", "w9"), "w9", True),
    ]:
        assert StopStrings(tokenizer, strings).ends(tokenizer(text)["input_ids"]) is ends, (strings, text)


@pytest.mark.parametrize("slots", [4, 9])
def test_growing_the_cache_and_moving_slots_keeps_running_samples_intact(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of very different lengths and temperatures join while others run, so slots are added, freed,
    moved and enlarged in between."""
    monkeypatch.setattr("paw_hpc.rollout.engines.decoder.SLOTS_STEP", 2)
    model = packed_model()
    asked = [replace(r, temperature=0.3 * (r.episode % 4)) for r in requests(9, max_tokens=25)]
    asked[5] = GenerationRequest(5, np.arange(150, dtype=np.int32) % 40 + 2, 5, 1.0, 40)
    expected = ids(engine_of(model, max_batch=1).generate_batch(asked))
    decoder = Decoder(model, word_tokenizer(), slots)
    waiting, done = list(enumerate(asked)), {}
    while waiting or decoder.live:
        joining = waiting[: min(1, slots - decoder.live)]
        waiting = waiting[len(joining) :]
        done |= dict(decoder.admit(joining))
        done |= dict(decoder.step()) if decoder.live else {}
    assert [done[i].ids.tolist() for i in range(9)] == expected


class Play:
    """Episodes that take a few turns each, with pauses in between; every prompt depends on the last
    answer."""

    def __init__(self, engine: LocalEngine, episodes: int, pause_seed: int) -> None:
        self.engine, self.episodes = engine, episodes
        self.pause = np.random.default_rng(pause_seed)
        self.answers: dict[tuple[int, int], list[int]] = {}

    async def episode(self, number: int) -> None:
        prompt = [2 + number % 40]
        try:
            for turn in range(1 + number % 4):
                request = GenerationRequest(
                    number, np.array(prompt, dtype=np.int32), 100 * number + turn, 1.0, 6
                )
                answer = await self.engine.generate(request)
                self.answers[number, turn] = answer.ids.tolist()
                prompt += answer.ids.tolist()
                await asyncio.sleep(float(self.pause.random()) * 0.003)
        finally:
            self.engine.leave(number)

    async def run(self) -> None:
        for number in range(self.episodes):
            self.engine.join(number)
        await asyncio.gather(*(self.episode(n) for n in range(self.episodes)))


def batches_of(engine: LocalEngine) -> list[list[int]]:
    """The episodes of each prefill from now on."""
    seen: list[list[int]] = []
    admit = engine.decoder.admit

    def recording(pairs):
        if pairs:
            seen.append([request.episode for _, request in pairs])
        return admit(pairs)

    engine.decoder.admit = recording  # type: ignore[method-assign]
    return seen


def test_deterministic_batches_depend_on_the_episodes_alone() -> None:
    model, plays, batches = packed_model(), [], []
    for pause_seed in (0, 1):
        engine = engine_of(model, max_batch=4)
        batches.append(batches_of(engine))
        plays.append(Play(engine, 10, pause_seed))
        asyncio.run(plays[-1].run())
        engine.close()
    assert plays[0].answers == plays[1].answers and len(plays[0].answers) == sum(1 + n % 4 for n in range(10))
    turns = [[n for n in range(10) if n % 4 >= turn] for turn in range(4)]
    assert batches[0] == batches[1] == [t[i : i + 4] for t in turns for i in range(0, len(t), 4)]


def test_eager_batching_samples_the_same_and_waits_for_nobody() -> None:
    model = packed_model()
    engine, deterministic = engine_of(model, max_batch=4, batching="eager"), engine_of(model, max_batch=4)
    engine.join(99)  # never asks
    eager, reference = Play(engine, 10, 0), Play(deterministic, 10, 0)
    asyncio.run(asyncio.wait_for(eager.run(), 30))
    asyncio.run(asyncio.wait_for(reference.run(), 30))
    assert eager.answers == reference.answers


def test_a_deterministic_batch_waits_for_a_joined_episode_until_it_leaves() -> None:
    async def scenario() -> None:
        engine = engine_of(packed_model())
        for episode in (0, 1):
            engine.join(episode)
        turn = asyncio.create_task(engine.generate(requests(1)[0]))
        await asyncio.sleep(0.05)
        assert not turn.done()
        engine.leave(1)
        assert len((await asyncio.wait_for(turn, 10)).ids)

    asyncio.run(scenario())


@pytest.mark.parametrize("batching", ["deterministic", "eager"])
def test_an_error_reaches_every_caller_and_the_engine_goes_on(batching: str) -> None:
    async def scenario() -> None:
        engine = engine_of(packed_model(), batching=batching)
        asked = requests(3)
        step, engine.decoder.step = engine.decoder.step, lambda: 1 / 0  # type: ignore[assignment]
        for r in asked:
            engine.join(r.episode)
        failed = await asyncio.gather(*(engine.generate(r) for r in asked), return_exceptions=True)
        assert all(isinstance(f, ZeroDivisionError) for f in failed)
        engine.decoder.step = step  # type: ignore[method-assign]
        answers = await asyncio.gather(*(engine.generate(r) for r in asked))
        assert ids(answers) == ids(engine_of(packed_model()).generate_batch(asked))

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize("batching", ["deterministic", "eager"])
def test_a_cancelled_event_loop_leaves_a_usable_engine(batching: str) -> None:
    engine, asked = engine_of(packed_model(), batching=batching), requests(3, max_tokens=200)
    engine.decoder.eos_ids = frozenset()

    async def cut_short() -> None:
        turns = [asyncio.create_task(engine.generate(r)) for r in asked]
        await asyncio.sleep(0.02)
        assert not any(t.done() for t in turns)

    asyncio.run(cut_short())
    expected = ids(engine_of(copy.deepcopy(engine.decoder.model)).generate_batch(requests(3)))

    async def again() -> list[Completion]:
        engine.decoder.eos_ids = frozenset({1})
        return await asyncio.wait_for(asyncio.gather(*(engine.generate(r) for r in requests(3))), 30)

    assert ids(asyncio.run(again())) == expected


def test_a_request_is_refused_before_it_can_disturb_others() -> None:
    async def scenario() -> None:
        engine = engine_of(packed_model())
        engine.join(0)
        engine.join(1)
        asked = requests(2)
        first = asyncio.create_task(engine.generate(asked[0]))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="not been answered"):
            await engine.generate(asked[0])
        with pytest.raises(ValueError, match="context"):
            await engine.generate(GenerationRequest(1, np.full(300, 3, dtype=np.int32), 0, 1.0, 4))
        second = await engine.generate(asked[1])
        assert ids([await first, second]) == ids(engine_of(packed_model()).generate_batch(asked))

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_live_weights_and_their_version_are_used() -> None:
    model, asked = packed_model(), requests(6)
    engine = engine_of(model)
    before = engine.generate_batch(asked)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    engine.weight_version = 7
    after = engine.generate_batch(asked)
    assert {c.weight_version for c in before} == {0} and {c.weight_version for c in after} == {7}
    assert ids(after) == ids(engine_of(model).generate_batch(asked)) != ids(before)


def test_the_cache_holds_what_was_asked_for_and_no_more() -> None:
    engine = engine_of(packed_model(), max_batch=1000)
    for count, slots in ((3, 16), (2, 16), (40, 48)):
        engine.generate_batch(requests(count, max_tokens=12))
        assert {store.shape[:2] for stores in engine.decoder._cache.layers.values() for store in stores} == {
            (slots, 64)
        }


def test_the_memory_of_the_cache_can_be_given_back() -> None:
    engine, asked = engine_of(packed_model()), requests(4)
    before = ids(engine.generate_batch(asked))
    assert engine.decoder._cache.layers
    engine.release()
    assert not engine.decoder._cache.layers
    assert ids(engine.generate_batch(asked)) == before
