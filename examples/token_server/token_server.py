"""An engine from outside: any server that speaks OpenAI's completions with token ids in and out, such as
vLLM's (`return_token_ids`).

New weights are written as a Hugging Face folder which the server sees, and it is told to read them
(`reload`).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import aiohttp
import httpx
import numpy as np

from paw_hpc.policy.backend import Policy
from paw_hpc.recipe.doors import ENGINES, Engine, read_options
from paw_hpc.recipe.section import Section
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.playing import Parts, Playing
from paw_hpc.system.errors import UserError


class Options(Section):
    """`rollout.options`."""

    url: str
    """Of the server: http://127.0.0.1:8000."""
    reload: str = "/reload"
    """What is posted {"model_path": FOLDER} when there are new weights; it answers when they are in use."""
    timeout_s: float = 600.0


class TokenServer:
    """Implements `paw_hpc.rollout.engines.base.Engine`."""

    def __init__(self, options: Options):
        self._options, self.weight_version = options, 0
        self._session: aiohttp.ClientSession | None = None

    def join(self, episode: int) -> None:
        pass

    def leave(self, episode: int) -> None:
        pass

    async def generate(self, request: GenerationRequest) -> Completion:
        asked = {
            "prompt": request.prompt_ids.tolist(),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed % 2**63,
            "logprobs": 0,
            "return_token_ids": True,
        }
        answer = (await self._post("/v1/completions", asked))["choices"][0]
        ids = np.array(answer["token_ids"], dtype=np.int32)
        logprobs = np.array(answer["logprobs"]["token_logprobs"], dtype=np.float32)
        if len(ids) != len(logprobs):
            raise UserError(
                f"{self._options.url}: {len(ids)} tokens with {len(logprobs)} log-probs; the server must "
                "give one for each"
            )
        return Completion(ids, logprobs, None, self.weight_version, answer["finish_reason"] != "length")

    async def _post(self, path: str, body: dict[str, object]) -> dict:  # type: ignore[type-arg]
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._options.timeout_s)
            )
        async with self._session.post(self._options.url + path, json=body) as answer:
            if answer.status != 200:
                raise UserError(
                    f"{self._options.url}{path}: status {answer.status}: {(await answer.text())[:200]}"
                )
            return await answer.json()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


class FolderPublisher:
    """Implements `paw_hpc.rollout.playing.Publisher`: the newest weights are the one folder that is kept."""

    def __init__(self, engine: TokenServer, policy: Policy, folder: Path, options: Options):
        self._engine, self._policy, self._folder, self._options = engine, policy, folder, options

    def publish(self, version: int) -> None:
        folder = self._folder / f"weights-{version}"
        self._policy.export(folder)
        told = httpx.post(
            self._options.url + self._options.reload,
            json={"model_path": str(folder)},
            timeout=self._options.timeout_s,
        )
        if told.status_code != 200:
            raise UserError(
                f"{self._options.url}{self._options.reload}: status {told.status_code}: {told.text[:200]}"
            )
        self._engine.weight_version = version
        for older in self._folder.glob("weights-*"):
            if older != folder:
                shutil.rmtree(older)


def make(parts: Parts) -> Playing:
    options = read_options(Options, parts.recipe.rollout.options)
    engine, folder = TokenServer(options), Path(tempfile.mkdtemp(prefix="paw-weights-", dir=parts.workspace))

    def close() -> None:
        parts.runner.run(engine.close())
        shutil.rmtree(folder, ignore_errors=True)

    return Playing(engine, FolderPublisher(engine, parts.policy, folder, options), close=close)


ENGINES.add("token_server", Engine(make=make, options=Options))
