"""A small server of OpenAI's completions with token ids in and out: the in-process engine behind aiohttp,
weights out of a folder."""

from __future__ import annotations

import asyncio
import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from paw_hpc.policy.loading import load_model, load_tokenizer
from paw_hpc.policy.packed import use_packed_attention
from paw_hpc.recipe import Recipe
from paw_hpc.rollout.engines.base import GenerationRequest
from paw_hpc.rollout.engines.local import LocalEngine


class CompletionsServer:
    """Serves on a port of loopback until it is closed. `folders` are those that it was told to read; `tokens`
    that it has sampled."""

    def __init__(self, recipe: Recipe):
        self._recipe, self._engine = recipe, self._load(recipe)
        self.folders, self.tokens, self._numbers = list[str](), 0, itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(60)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    def _load(self, recipe: Recipe) -> LocalEngine:
        tokenizer = load_tokenizer(recipe.model)
        model = load_model(recipe, tokenizer).eval()
        use_packed_attention(model)
        return LocalEngine(model, tokenizer, recipe.rollout.model_copy(update={"batching": "eager"}))

    async def _start(self) -> str:
        app = web.Application()
        app.add_routes([web.post("/v1/completions", self._complete), web.post("/reload", self._reload)])
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]

    async def _complete(self, request: web.Request) -> web.Response:
        asked: dict[str, Any] = await request.json()
        prompt = np.array(asked["prompt"], dtype=np.int32)
        found = await self._engine.generate(
            GenerationRequest(
                next(self._numbers), prompt, asked["seed"], asked["temperature"], asked["max_tokens"]
            )
        )
        self.tokens += len(found.ids)
        choice = {
            "token_ids": found.ids.tolist(),
            "logprobs": {"token_logprobs": found.logprobs.tolist()},
            "finish_reason": "stop" if found.finished else "length",
        }
        return web.json_response({"choices": [choice]})

    async def _reload(self, request: web.Request) -> web.Response:
        folder = (await request.json())["model_path"]
        if not Path(folder).is_dir():
            return web.Response(status=404, text=f"{folder}: no such folder")
        self.folders.append(folder)
        model = self._recipe.model.model_copy(update={"path": folder})
        self._engine = await asyncio.to_thread(self._load, self._recipe.model_copy(update={"model": model}))
        return web.json_response({})
