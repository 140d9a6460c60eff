"""Generation by a fleet of SGLang servers: ids in, ids and behaviour log-probs out.

A turn is complete when one server has answered it. A server that dies or hangs before takes nothing with it:
the turn is asked of another one, from the ids that are certain, and its environment has seen nothing of it
yet. A turn that new weights interrupt comes back as far as it is, and goes on from there; its tokens then
carry the versions that sampled them.
"""

from __future__ import annotations

import itertools
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paw_hpc.experience import Ids
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.rollout.engines.stopping import StopStrings
from paw_hpc.rollout.sglang.client import CONTROL_TIMEOUT_S, Piece, ServerFault
from paw_hpc.rollout.sglang.fleet import Fleet
from paw_hpc.rollout.sglang.lifecycle import Server
from paw_hpc.system.errors import NOT_FINITE, RecipeError, TrainingError, UserError

FAULTS_PER_TURN = 5
"""Servers that may fail over one turn before the turn itself is suspected."""


@dataclass(slots=True)
class _Turn:
    """What is certain of a turn so far."""

    pieces: list[Piece] = field(default_factory=list)
    length: int = 0
    faults: int = 0
    first_token_s: float | None = None

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.length += len(piece.ids)


class SGLangEngine:
    """Implements `paw_hpc.rollout.engines.base.Engine`.

    Args:
        fleet: started by whoever owns it.
        eos_ids: ids that end a response.
        stop: strings that end a response once it contains one; they are kept.
        vocabulary: ids of the model.
    """

    def __init__(self, fleet: Fleet, eos_ids: frozenset[int], stop: StopStrings, vocabulary: int = 2**31):
        self._fleet, self._eos_ids, self._stop = fleet, eos_ids, stop
        self._vocabulary = vocabulary
        self._run = uuid.uuid4().hex[:8]
        self._numbers = itertools.count()

    def join(self, episode: int) -> None:
        """Nothing to do: nobody waits for anybody here."""

    def leave(self, episode: int) -> None:
        self._fleet.routing.forget(episode)

    def drain_metrics(self) -> dict[str, float]:
        """What has happened to servers and turns since the last call."""
        return self._fleet.drain_metrics()

    async def generate(self, request: GenerationRequest) -> Completion:
        """One turn.

        Raises:
            FleetError: no server is left.
            Refused: the servers do not take such a request (it names why).
            UserError: every server that was asked failed over this turn.
            TrainingError: the policy's logits are not finite.
        """
        turn, asked = _Turn(), time.perf_counter()
        while True:
            async with self._fleet.routing.server_for(request.episode) as server:
                waited = time.perf_counter() - asked
                try:
                    piece = await self._ask(server, request, turn)
                except ServerFault as fault:
                    self._failed(server, request, turn, fault)
                    continue
            if turn.first_token_s is None and piece.first_token_s is not None and len(piece.ids):
                turn.first_token_s = waited + piece.first_token_s
            turn.add(piece)
            completion = self._complete(request, turn)
            if completion is not None:
                return completion
            self._fleet.count("paused_turns")

    async def _ask(self, server: Server, request: GenerationRequest, turn: _Turn) -> Piece:
        """The next piece of a turn from this server. Raises ServerFault."""
        rid = f"{self._run}-{request.episode}-{next(self._numbers)}"
        prompt = np.concatenate([request.prompt_ids, *(p.ids for p in turn.pieces)])
        timeout_s = self._fleet.settings.request_timeout_s
        generation = server.http.generate(rid, prompt, self._sampling(request, turn.length), timeout_s)
        piece: Piece = await self._fleet.routing.ask(server, generation)
        if (piece.versions != server.version).any():
            self._fleet.count("stale_answers")
            found = sorted(set(piece.versions.tolist()))
            raise ServerFault(
                server.name, f"it answered with weights {found}, and should have version {server.version}"
            )
        most = request.max_tokens - turn.length
        if len(piece.ids) > most or (
            len(piece.ids) and not 0 <= piece.ids.min() <= piece.ids.max() < self._vocabulary
        ):
            raise ServerFault(
                server.name,
                f"it answered with {len(piece.ids)} tokens where {most} were asked for, or with ids that "
                "the model lacks",
            )
        if not np.isfinite(piece.logprobs).all():
            raise TrainingError(NOT_FINITE)
        if piece.cached_tokens is not None:
            self._fleet.count("kept_tokens", piece.cached_tokens)
            self._fleet.count("prefill_tokens", len(prompt) - piece.cached_tokens)
        return piece

    def _sampling(self, request: GenerationRequest, done: int) -> dict[str, Any]:
        return {
            "temperature": request.temperature,
            "max_new_tokens": request.max_tokens - done,
            "stop_token_ids": sorted(self._eos_ids),
            "stop": list(self._stop.strings),
            "no_stop_trim": True,
            "skip_special_tokens": False,
            # Obeyed by servers with deterministic inference only. Each piece of a turn draws anew.
            "sampling_seed": (request.seed + done) % 2**31,
        }

    def _failed(self, server: Server, request: GenerationRequest, turn: _Turn, fault: ServerFault) -> None:
        self._fleet.report(server, fault)
        self._fleet.count("retried_turns")
        turn.faults += 1
        if turn.faults >= FAULTS_PER_TURN:
            raise UserError(
                f"episode {request.episode}: {turn.faults} servers failed over one and the same turn, the "
                f"last with: {fault}"
            ) from fault

    def _complete(self, request: GenerationRequest, turn: _Turn) -> Completion | None:
        """The turn, or None while it has to go on."""
        ids = np.concatenate([p.ids for p in turn.pieces])
        last = turn.pieces[-1]
        cut = self._stopped_between(turn, ids)
        if last.ended == "abort" and cut is None and len(ids) < request.max_tokens:
            return None
        ids = ids[:cut]
        versions = np.concatenate([p.versions for p in turn.pieces])[:cut]
        return Completion(
            ids=ids,
            logprobs=np.concatenate([p.logprobs for p in turn.pieces])[:cut],
            entropies=None,
            weight_version=int(versions[-1]) if len(versions) else int(self._fleet.version or 0),
            finished=last.ended == "stop" or cut is not None,
            token_versions=versions if len(set(versions.tolist())) > 1 else None,
            first_token_s=turn.first_token_s,
        )

    def _stopped_between(self, turn: _Turn, ids: Ids) -> int | None:
        """Where a stop string ends that began in one piece and ended in the next (a server sees its own piece
        alone); None: there is none."""
        if len(turn.pieces) < 2 or not self._stop.strings:
            return None
        listed = ids.tolist()
        first = turn.length - len(turn.pieces[-1].ids)
        return next(
            (
                n
                for n in range(first + 1, min(first + self._stop.window, len(listed)) + 1)
                if self._stop.ends(listed[:n])
            ),
            None,
        )


async def check_limits(fleet: Fleet, max_prompt_tokens: int, max_response_tokens: int) -> None:
    """Compare what a recipe may ask for with what the servers take.

    Raises:
        RecipeError: a server's KV cache or context is too small; names the key.
    """
    for server in await fleet.healthy():
        try:
            info = await server.http.info(CONTROL_TIMEOUT_S)
        except ServerFault as fault:
            fleet.report(server, fault)
            continue
        room, needed = info.get("max_req_input_len"), max_prompt_tokens + max_response_tokens
        if isinstance(room, int) and needed > room:
            raise RecipeError(
                f"rollout.max_prompt_tokens: {max_prompt_tokens} + {max_response_tokens} of the response "
                f"are more than the {room} tokens"
                f" that {server.name} takes; raise rollout.fleet.cache_tokens, or lower them"
            )
