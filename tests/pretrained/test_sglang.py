"""A real server with a pretrained model: its log-probs are the trainer's before a publication and after
it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.rollout.site import PYTHON, REQUIRED, Site, recipe_for_servers, reference_logprobs

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def site(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not PYTHON.exists() and not REQUIRED:
        pytest.skip("SGLang is not installed: make setup-sglang")
    data = recipe_for_servers(max_prompt_tokens=96, max_response_tokens=16, stop=[]).model_dump(mode="json")
    data["model"]["path"] = str(smollm2)
    data["rollout"]["fleet"]["servers"] = 1
    site = Site(tmp_path_factory.mktemp("servers"), data)
    yield site
    site.close()


def test_log_probs_before_and_after_a_publication(site: Site) -> None:
    prompt = site.chat.prompt([{"role": "user", "content": "What is the capital of France?"}])
    (server,) = site.fleet.servers
    said = []
    for seed in (0, 1):
        site.change_weights(seed, scale=0.003)
        site.publish()
        site.all_ready()
        ids, logprobs = site.only(server, prompt, 8)
        apart = np.abs(np.array(logprobs) - reference_logprobs(site.model, prompt, np.array(ids))).max()
        assert apart < TOLERANCE, f"after publication {seed}: {apart}"
        said.append((ids, logprobs))
    assert "Paris" in site.tokenizer.decode(said[0][0])
    before = reference_logprobs(site.model, prompt, np.array(said[0][0]))
    assert np.abs(before - np.array(said[0][1])).max() > 100 * TOLERANCE, (
        "the second publication changed nothing that this test can see"
    )
