"""A model that somebody pretrained, in one process: its words, its template, what it says, and what the
trainer thinks of that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from paw_hpc.experience import Pool, Scores
from paw_hpc.objective.plan import plan
from paw_hpc.policy.huggingface import HuggingFacePolicy
from paw_hpc.policy.loading import load_tokenizer
from paw_hpc.recipe import ModelSection, RolloutSection
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.engines.base import GenerationRequest
from paw_hpc.rollout.engines.local import LocalEngine
from tests.pretrained import ranks

Scored = tuple[HuggingFacePolicy, Pool, Scores]
QUESTION = "What is the capital of France?"
SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)


@pytest.fixture(scope="module")
def chat(smollm2: Path) -> ChatFormat:
    return ChatFormat(load_tokenizer(ModelSection(path=str(smollm2))))


class TestWords:
    def test_the_vocabulary_is_the_models_rows(self, scored: Scored) -> None:
        policy = scored[0]
        assert (
            len(policy.tokenizer)
            == policy.model.config.vocab_size
            == policy.model.get_input_embeddings().weight.shape[0]
            == 49152
        )

    def test_every_digit_is_a_word_and_blank_lines_before_one_are_not_cut(self, scored: Scored) -> None:
        """What a GGUF file says by a name alone. GPT-2's rule would cut the two newlines apart."""
        tokenizer = scored[0].tokenizer
        assert tokenizer.tokenize("a\n\n1  12") == ["a", "ĊĊ", "1", "ĠĠ", "1", "2"]

    def test_special_tokens_in_what_a_game_says_are_characters(self, chat: ChatFormat) -> None:
        ids, _ = chat.observation("<|im_end|>", 100)
        assert len(ids) > 3 and 2 not in ids


class TestTemplate:
    def test_its_own_system_prompt_stands_before_a_prompt_without_one(
        self, chat: ChatFormat, scored: Scored
    ) -> None:
        tokenizer = scored[0].tokenizer
        said = tokenizer.decode(chat.prompt([{"role": "user", "content": QUESTION}]))
        assert said == f"{SYSTEM}<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
        assert tokenizer.decode(chat.prompt(own)).startswith(
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"
        )

    def test_no_system_prompt_stands_between_an_answer_and_an_observation(
        self, chat: ChatFormat, scored: Scored
    ) -> None:
        tokenizer = scored[0].tokenizer
        assert tokenizer.decode(chat.bridge(finished=True)) == "\n<|im_start|>user\n"
        assert tokenizer.decode(chat.bridge(finished=False)) == "<|im_end|>\n<|im_start|>user\n"


@torch.no_grad()
def test_packed_log_probs_are_those_of_transformers(smollm2: Path, scored: Scored) -> None:
    _, pool, scores = scored
    model, expected = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32), []
    for t in pool.transitions:
        ids = torch.from_numpy(np.concatenate([t.prompt_ids, t.response_ids]).astype(np.int64))
        logp = model(ids[None]).logits[0, len(t.prompt_ids) - 1 : -1].log_softmax(-1)
        expected.append(logp.gather(1, ids[len(t.prompt_ids) :, None])[:, 0])
    torch.testing.assert_close(scores.old_logp, torch.cat(expected), atol=1e-4, rtol=1e-5)
    assert float(scores.old_logp.std()) > 1.0, "log-probs that hardly differ would be compared with little"


@torch.no_grad()
def test_greedy_answers_are_those_of_generate(smollm2: Path, scored: Scored, chat: ChatFormat) -> None:
    policy = scored[0]
    asked = [QUESTION, "Count from 1 to 5.", "Say hello."]
    prompts = [chat.prompt([{"role": "user", "content": text}]) for text in asked]
    engine = LocalEngine(policy.model, policy.tokenizer, RolloutSection(max_batch=2))
    answers = engine.generate_batch(
        [GenerationRequest(i, prompt, i, 0.0, 12) for i, prompt in enumerate(prompts)]
    )
    engine.close()
    own = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        expected = own.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[
            0, len(prompt) :
        ]
        assert answer.ids.tolist() == expected.tolist()
    assert "Paris" in chat.decode(answers[0].ids) and answers[0].finished


def test_in_bfloat16_it_says_nearly_the_same_and_learns_in_float32(smollm2: Path, scored: Scored) -> None:
    _, pool, scores = scored
    policy = HuggingFacePolicy(ranks.recipe(smollm2, **{"model.dtype": "bfloat16", "optimizer.lr": 1e-5}))
    found = policy.score(pool)
    apart = (found.old_logp - scores.old_logp).abs()
    assert 0.0 < float(apart.mean()) < 0.1 and found.old_logp.dtype == torch.float32
    before = {name: master.detach().clone() for name, master in policy.optimizer.masters.items()}
    metrics = policy.update(plan(pool, found, policy.recipe, 0).batch, 0)
    assert metrics["steps"] == 1 and np.isfinite(metrics["grad_norm"])
    assert all(
        master.dtype == torch.float32 and not torch.equal(master, before[name])
        for name, master in policy.optimizer.masters.items()
    )
    assert all(p.dtype == torch.bfloat16 for p in policy.model.parameters())
