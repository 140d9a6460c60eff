"""The engine against real servers: what it samples is what transformers would, and what it cannot serve it
says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from paw_hpc.recipe import parse_recipe
from paw_hpc.rollout.engines.base import GenerationRequest
from paw_hpc.rollout.engines.stopping import StopStrings
from paw_hpc.rollout.event_loop import EventLoop
from paw_hpc.rollout.sglang.client import Refused
from paw_hpc.rollout.sglang.engine import SGLangEngine, check_limits
from paw_hpc.rollout.sglang.lifecycle import FleetError
from paw_hpc.rollout.sglang.publish.buckets import weights_of
from paw_hpc.rollout.sglang.publish.checks import gpu_checksum
from paw_hpc.rollout.sglang.serving import Serving
from tests.rollout.site import (
    PYTHON,
    REQUIRED,
    Site,
    recipe_for_servers,
    reference_greedy,
    reference_logprobs,
)

TOLERANCE = 1e-5


def request(
    site: Site, prompt: np.ndarray, *, episode: int = 0, temperature: float = 1.0, max_tokens: int = 12
) -> GenerationRequest:
    return GenerationRequest(
        episode, prompt, seed=episode + 1, temperature=temperature, max_tokens=max_tokens
    )


class TestWhatIsSampled:
    def test_is_transformers_greedy_choice_on_every_server(self, site: Site) -> None:
        for prompt in site.prompts(4):
            expected = reference_greedy(site.model, prompt, 8)
            for server in site.fleet.servers:
                ids, logprobs = site.only(server, prompt)
                assert ids == expected
                assert (
                    np.abs(np.array(logprobs) - reference_logprobs(site.model, prompt, np.array(ids))).max()
                    < TOLERANCE
                )

    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_has_the_log_probs_of_the_model_at_its_temperature(self, site: Site, temperature: float) -> None:
        prompts = site.prompts(12, seed=1)
        turns = site.play(
            [request(site, p, episode=i, temperature=temperature) for i, p in enumerate(prompts)]
        )
        for prompt, turn in zip(prompts, turns, strict=True):
            expected = reference_logprobs(site.model, prompt, turn.ids, temperature)
            # Scaled as the logits are; and rounding grows with a number: seldom tokens (log-prob -9) may
            # differ by ten units in the last place more.
            assert np.allclose(turn.logprobs, expected, atol=TOLERANCE / temperature, rtol=1e-6)
            assert (
                turn.weight_version == site.version and turn.token_versions is None and turn.entropies is None
            )
            assert turn.first_token_s is not None and turn.first_token_s > 0
        untempered = np.concatenate(
            [reference_logprobs(site.model, p, t.ids) for p, t in zip(prompts, turns, strict=True)]
        )
        apart = np.abs(np.concatenate([t.logprobs for t in turns]) - untempered).max()
        assert (apart > 0.01) == (temperature != 1.0)

    def test_differs_between_turns_with_one_prompt(self, site: Site) -> None:
        """Members of a group start from the same prompt; servers that shared a seed would play them alike."""
        site.change_weights(5, scale=0.2)
        site.publish()
        [prompt] = site.prompts(1)
        turns = site.play([request(site, prompt, episode=i, max_tokens=8) for i in range(16)])
        assert len({tuple(t.ids.tolist()) for t in turns}) > 12


class TestEnds:
    def test_are_the_turns_own_token_or_its_length(self, site: Site) -> None:
        eos = site.tokenizer.eos_token_id
        prompts = site.prompts(16, seed=2)
        # the site's own has a string, which a turn may say
        engine = SGLangEngine(site.fleet, frozenset({eos}), StopStrings(site.tokenizer, []))
        for limit in (1, 12):
            for turn in site.play(
                [request(site, p, episode=i, max_tokens=limit) for i, p in enumerate(prompts)], engine
            ):
                assert turn.finished == (turn.ids[-1] == eos) and eos not in turn.ids[:-1]
                assert turn.finished or len(turn.ids) == limit

    def test_may_be_a_string_that_is_kept(self, site: Site) -> None:
        """The string is one that the policy says in the middle of an answer."""
        prompts = site.prompts(8, seed=3)
        asked = [request(site, p, episode=i, temperature=0.0) for i, p in enumerate(prompts)]
        whole = site.play(asked)
        words = next(site.tokenizer.decode(t.ids[1:3].tolist()) for t in whole if len(t.ids) > 4)
        engine = SGLangEngine(
            site.fleet, frozenset({site.tokenizer.eos_token_id}), StopStrings(site.tokenizer, [words])
        )
        cut = 0
        for before, turn in zip(whole, site.play(asked, engine), strict=True):
            assert turn.ids.tolist() == before.ids[: len(turn.ids)].tolist()
            text = site.tokenizer.decode(turn.ids.tolist())
            assert (words in text) == text.endswith(words) == (len(turn.ids) < len(before.ids))
            assert turn.finished or len(turn.ids) == 12
            cut += len(turn.ids) < len(before.ids)
        assert cut > 0


class TestPrefixes:
    def test_what_a_prompt_goes_on_from_is_not_read_again_and_both_are_counted(self, site: Site) -> None:
        site.publish()  # which empties the caches
        [prompt] = site.prompts(1, seed=5)
        site.fleet.drain_metrics()
        [turn] = site.play([request(site, prompt, episode=3, max_tokens=8)])
        first = site.fleet.drain_metrics()
        assert first["rollout/prefill_tokens"] + first["rollout/kept_tokens"] == len(prompt)
        following = np.concatenate([prompt, turn.ids, prompt[:7]])
        site.play([request(site, following, episode=3, max_tokens=4)])
        second = site.fleet.drain_metrics()
        assert second["rollout/prefill_tokens"] + second["rollout/kept_tokens"] == len(following)
        assert second["rollout/kept_tokens"] >= len(prompt) > first["rollout/kept_tokens"], (
            "the episode stays with its server"
        )


class TestLimits:
    def test_a_prompt_that_no_server_takes_is_refused_once(self, site: Site) -> None:
        with pytest.raises(Refused, match=r"context length|maximum allowed length"):
            site.play([request(site, np.full(60_000, 7, dtype=np.int32))])
        assert site.fleet.drain_metrics()["fleet/retried_turns"] == 0

    def test_a_recipe_that_asks_for_more_than_servers_take_is_refused_by_key(self, site: Site) -> None:
        site.loop.run(check_limits(site.fleet, 512, 400))
        with pytest.raises(
            Exception,
            match=r"^rollout\.max_prompt_tokens: 900000 \+ 400 .* raise rollout\.fleet\.cache_tokens",
        ):
            site.loop.run(check_limits(site.fleet, 900_000, 400))


@pytest.mark.skipif(not PYTHON.exists() and not REQUIRED, reason="SGLang is not installed: make setup-sglang")
class TestWithoutServers:
    def test_a_start_that_fails_shows_the_servers_own_last_lines(self, tmp_path: Path, site: Site) -> None:
        data = recipe_for_servers().model_dump(mode="json")
        data["rollout"]["fleet"] |= {"servers": 1, "arguments": ["--no-such-argument"]}
        with EventLoop() as loop:
            serving = Serving(
                parse_recipe(data),
                loop,
                tmp_path,
                site.model.config,
                site.tokenizer,
                weights_of(site.model),
                1 << 30,
            )
            with pytest.raises(FleetError, match="--no-such-argument"):
                serving.publisher.publish(0)
            serving.close()

    def test_checksums_of_gpus_are_those_of_sglangs_kernel(self, tmp_path: Path) -> None:
        """In Triton's interpreter, which takes its kernel for tensors in CPU memory once the two assertions
        are out of the way."""
        [source] = PYTHON.parent.parent.glob(
            "lib/python*/site-packages/sglang/kernels/ops/memory/gpu_tensor_hash.py"
        )
        lines = [line for line in source.read_text().splitlines() if "Use .cuda() first" not in line]
        (tmp_path / "kernel.py").write_text("\n".join(lines))
        check = (
            "import sys, torch; sys.path.insert(0, sys.argv[1]); import kernel\n"
            "for n, kind in ((1, torch.float32), (7, torch.bfloat16), (8300, torch.float32)):\n"
            "    print(f'{kernel.gpu_tensor_hash(torch.arange(n).to(kind) / 3):016x}')\n"
        )
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        said = subprocess.run(
            [sys.executable, "-c", check, str(tmp_path)],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        sizes = ((1, torch.float32), (7, torch.bfloat16), (8300, torch.float32))
        assert said.stdout.split() == [gpu_checksum(torch.arange(n).to(kind) / 3) for n, kind in sizes]
        assert importlib.util.find_spec("triton") is not None
