"""The in-process engine: samples with the trainer's live weights, in a thread of its own so that environments
go on being served.

Two ways of batching (`rollout.batching`). deterministic: a batch starts when every joined episode that is
still playing has asked, sorted by episode and cut at `rollout.max_batch`; what it holds depends on the
episodes alone, so a run repeats bit for bit. eager: requests join whatever is running as soon as a slot is
free.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from paw_hpc.recipe import RolloutSection
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.engines.decoder import Decoder
from paw_hpc.rollout.engines.prefixes import KeptPrefixes

Requests = Sequence[tuple[int, GenerationRequest]]
Waiting = tuple[GenerationRequest, "asyncio.Future[Completion]"]


class LivePublisher:
    """Implements `paw_hpc.rollout.playing.Publisher` for an engine that reads the trainer's own tensors: only
    the version has to be told."""

    def __init__(self, engine: LocalEngine):
        self._engine = engine

    def publish(self, version: int) -> None:
        self._engine.weight_version = version


class LocalEngine:
    """Implements `paw_hpc.rollout.engines.base.Engine`; used from one event loop at a time.

    Args:
        model: a causal LM that went through `use_packed_attention` (`HuggingFacePolicy.model`), shared and
            never copied.
        tokenizer: ends of responses and stop strings.
        rollout: `stop`, `batching` and `max_batch` are used.
        conversation: prompts of an episode go on from one another: keys and values are kept from turn to
            turn, of as many tokens as the longest prompts and responses of `rollout.max_batch` episodes have.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rollout: RolloutSection,
        *,
        conversation: bool = False,
    ) -> None:
        most = rollout.max_batch * (rollout.max_prompt_tokens + rollout.max_response_tokens)
        self.decoder = Decoder(
            model, tokenizer, rollout.max_batch, rollout.stop, KeptPrefixes(most) if conversation else None
        )
        self._deterministic = rollout.batching == "deterministic"
        self._joined: set[int] = set()
        self._waiting: dict[int, Waiting] = {}
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="paw-engine")

    @property
    def weight_version(self) -> int:
        """Set by whoever changes the weights; every completion carries it."""
        return self.decoder.weight_version

    @weight_version.setter
    def weight_version(self, version: int) -> None:
        self.decoder.weight_version = version
        if self.decoder.prefixes is not None:
            self.decoder.prefixes.clear()

    def join(self, episode: int) -> None:
        self._joined.add(episode)

    def leave(self, episode: int) -> None:
        self._joined.discard(episode)
        self._waiting.pop(episode, None)
        if self.decoder.prefixes is not None:
            self.decoder.prefixes.forget(episode)
        if self._waiting:
            self._start()

    async def generate(self, request: GenerationRequest) -> Completion:
        """One turn. Raises ValueError for a prompt that does not fit, or a second request of an episode that
        still waits for its first."""
        self.decoder.check(request)
        if request.episode in self._waiting:
            raise ValueError(f"episode {request.episode}: its last request has not been answered yet")
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting[request.episode] = (request, future)
        self._start()
        return await future

    def generate_batch(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """The same without an event loop: all of them, in pieces of `max_batch`, answered in their order. Not
        while `generate` is running."""
        answers: dict[int, Completion] = {}
        for start in range(0, len(requests), self.decoder.slots):
            piece = list(enumerate(requests[start : start + self.decoder.slots], start))
            answers |= dict(self._run(piece))
        if self.decoder.prefixes is not None:
            self.decoder.prefixes.clear()  # these are nobody's episodes
        return [answers[i] for i in range(len(requests))]

    def drain_metrics(self) -> dict[str, float]:
        """Prompt tokens that were read since the last call, and that were known from the turn before."""
        decoder = self.decoder
        found = {
            "rollout/prefill_tokens": float(decoder.prefill_tokens),
            "rollout/kept_tokens": float(decoder.kept_tokens),
        }
        decoder.prefill_tokens = decoder.kept_tokens = 0
        return found

    def release(self) -> None:
        """Give back the memory of the KV cache (it is made anew by the next request)."""
        self.decoder.release()

    def close(self) -> None:
        """Wait for the thread and end it."""
        self._thread.shutdown()

    def _start(self) -> None:
        """Begin to generate if it is time to; called whenever that may have changed."""
        if not self._waiting or (self._task is not None and not self._task.done()):
            return
        if self._deterministic and not self._joined <= self._waiting.keys():
            return
        self._task = asyncio.get_running_loop().create_task(
            self._serve_together() if self._deterministic else self._serve_continuously()
        )
        self._task.add_done_callback(
            lambda task: self._start() if task is self._task and not task.cancelled() else None
        )

    async def _serve_together(self) -> None:
        """Answer all that waits now, piece by piece; a piece that is done lets its environments go on."""
        batch = [self._waiting.pop(episode) for episode in sorted(self._waiting)]
        for start in range(0, len(batch), self.decoder.slots):
            piece = dict(enumerate(batch[start : start + self.decoder.slots]))
            requests = [(key, request) for key, (request, _) in piece.items()]
            await self._answer(piece, lambda requests=requests: self._run(requests))  # type: ignore[misc]

    async def _serve_continuously(self) -> None:
        """Token by token; between two tokens whatever waits joins, as far as there are slots."""
        running: dict[int, Waiting] = {}
        keys = itertools.count()
        while self._waiting or running:
            free = sorted(self._waiting)[: self.decoder.slots - len(running)]
            joining = {next(keys): self._waiting.pop(episode) for episode in free}
            running |= joining
            requests = [(key, request) for key, (request, _) in joining.items()]
            await self._answer(running, lambda requests=requests: self._advance(requests))  # type: ignore[misc]

    async def _answer(
        self, owners: dict[int, Waiting], work: Callable[[], list[tuple[int, Completion]]]
    ) -> None:
        """Run `work` in the thread and hand its completions to their owners, who leave `owners`. An error
        goes to all of them."""
        try:
            done = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except BaseException as error:
            self._thread.submit(self.decoder.release)  # after `work`, should that still be running
            for _, future in owners.values():
                if not future.done():
                    future.cancel() if isinstance(error, asyncio.CancelledError) else future.set_exception(
                        error
                    )
            owners.clear()
            if not isinstance(error, Exception):
                raise
            return
        for key, completion in done:
            future = owners.pop(key)[1]
            if not future.done():  # its episode may have been cancelled meanwhile
                future.set_result(completion)

    def _run(self, requests: Requests) -> list[tuple[int, Completion]]:
        try:
            done = self.decoder.admit(requests)
            while self.decoder.live:
                done += self.decoder.step()
        except BaseException:
            self.decoder.release()
            raise
        return done

    def _advance(self, joining: Requests) -> list[tuple[int, Completion]]:
        done = self.decoder.admit(joining)
        return done + (self.decoder.step() if self.decoder.live else [])
