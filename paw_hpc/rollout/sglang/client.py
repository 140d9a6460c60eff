"""One SGLang server over HTTP: its endpoints, and what can be wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, NotRequired

import aiohttp
import numpy as np
from typing_extensions import TypedDict

from paw_hpc.experience import Floats, Ids
from paw_hpc.system.errors import UserError
from paw_hpc.system.keys import bearer
from paw_hpc.system.outside import checked, read_json

CONTROL_TIMEOUT_S = 60.0
"""Of endpoints that move no weights."""


MOST_BYTES = 256 << 20
"""Of an answer: a million tokens with their log-probs are a fifth of it."""


class _Reason(TypedDict):
    type: Literal["stop", "length", "abort"]
    status_code: NotRequired[int | None]
    message: NotRequired[str | None]


class _Rank(TypedDict):
    checksums: dict[str, str]


class _Checksums(TypedDict):
    ranks: list[_Rank]


class ServerFault(Exception):
    """A server that cannot be used now: dead, stuck, or not what it should be. Another one can take over its
    work."""

    def __init__(self, server: str, reason: str):
        super().__init__(f"{server}: {reason}")
        self.server, self.reason = server, reason


class Locked(ServerFault):
    """A server that does not take this run's key: it was started with another one, or another program listens
    at its port."""


class Refused(UserError):
    """A request that every server would refuse (status 400): the request is at fault, and asking again is
    useless."""


@dataclass(slots=True, frozen=True)
class Piece:
    """What one request brought: a whole turn, or its beginning when generation was paused for new weights."""

    ids: Ids
    logprobs: Floats
    """float32[len(ids)], after temperature."""
    versions: Ids
    """int32[len(ids)]: the weights that sampled each token."""
    ended: str
    """stop, length, or abort."""
    first_token_s: float | None
    cached_tokens: int | None = None
    """Of the prompt, that the server's prefix cache had; None: it does not say."""


class ServerClient:
    """Asks one server. Every method raises ServerFault when the server is at fault (no connection, time out,
    status 500 and above).

    Args:
        name: how errors call it.
        url: such as http://127.0.0.1:30000.
        http: shared by all clients of a loop.
    """

    def __init__(self, name: str, url: str, http: aiohttp.ClientSession):
        self.name, self.url, self._http = name, url.rstrip("/"), http

    async def generate(self, rid: str, prompt_ids: Ids, sampling: dict[str, Any], timeout_s: float) -> Piece:
        """Sample one continuation. Raises Refused for a request that no server would take."""
        payload = {
            "rid": rid,
            "input_ids": prompt_ids.tolist(),
            "sampling_params": sampling,
            "return_logprob": True,
            "logprob_start_len": -1,
        }
        reply = await self.post("/generate", payload, timeout_s)
        return _piece(self.name, reply)

    async def healthy(self, timeout_s: float) -> bool:
        """Whether it still generates: it was asked for a token, or has produced one meanwhile. False while it
        starts."""
        status, _ = await self._ask("GET", "/health", None, timeout_s)
        return status == HTTPStatus.OK

    async def info(self, timeout_s: float = CONTROL_TIMEOUT_S) -> dict[str, Any]:
        """`/server_info`: version, limits, device."""
        return await self._json("GET", "/server_info", None, timeout_s)

    async def weight_version(self, timeout_s: float = CONTROL_TIMEOUT_S) -> str:
        return str((await self._json("GET", "/model_info", None, timeout_s)).get("weight_version"))

    async def pause(self, timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        """Stop generating: running requests come back as far as they are (`ended: abort`)."""
        await self.post("/pause_generation", {"mode": "abort"}, timeout_s)

    async def resume(self, timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        await self.post("/continue_generation", {}, timeout_s)

    async def flush_cache(self, timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        """Forget every prompt that older weights have read. A server that still works on a request refuses:
        that is a fault here."""
        status, body = await self._ask("POST", f"/flush_cache?timeout={timeout_s:g}", {}, timeout_s + 5)
        if status != HTTPStatus.OK:
            raise ServerFault(self.name, f"its cache was not flushed: {_message(body)}")

    async def begin_update(self, timeout_s: float) -> bool:
        """Open a weight update. False: the server is of an older API generation, which has no such step."""
        status, body = await self._ask("POST", "/begin_weight_update", {}, timeout_s)
        if status == HTTPStatus.NOT_FOUND:
            return False
        if status != HTTPStatus.OK and "already open" in _message(body):  # by a publication that was given up
            await self.post("/end_weight_update", {}, timeout_s)
            status, body = await self._ask("POST", "/begin_weight_update", {}, timeout_s)
        self._accept("/begin_weight_update", status, body)
        return True

    async def end_update(self, timeout_s: float) -> None:
        await self.post("/end_weight_update", {}, timeout_s)

    async def checksums(self, unwanted: Sequence[str], timeout_s: float) -> list[dict[str, str]] | None:
        """Per tensor-parallel rank, the server's name of each tensor -> its checksum. None: its release
        cannot say.

        Args:
            unwanted: tensors that it may leave out; reading a whole model takes longer than sending it. (A
                release that cannot reads all.)
        """
        status, body = await self._ask(
            "POST", "/weights_checker", {"action": "checksum", "skip_tensor_list": list(unwanted)}, timeout_s
        )
        if status == HTTPStatus.NOT_FOUND:
            return None
        self._accept("/weights_checker", status, body)
        try:
            return [rank["checksums"] for rank in checked(_Checksums, body)["ranks"]]
        except ValueError as error:
            raise ServerFault(self.name, f"/weights_checker: an answer that is none: {error}") from None

    async def release_memory(self, tags: Sequence[str], timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        await self.post("/release_memory_occupation", {"tags": list(tags)}, timeout_s)

    async def resume_memory(self, tags: Sequence[str], timeout_s: float = CONTROL_TIMEOUT_S) -> None:
        await self.post("/resume_memory_occupation", {"tags": list(tags)}, timeout_s)

    async def post(self, path: str, payload: dict[str, Any], timeout_s: float = CONTROL_TIMEOUT_S) -> Any:
        """The reply's JSON (or text). Raises ServerFault, and Refused for /generate, unless the status is 200
        and `success` is not false."""
        status, body = await self._ask("POST", path, payload, timeout_s)
        if status == HTTPStatus.BAD_REQUEST and path == "/generate":
            raise Refused(f"{self.name}: {_message(body)}")
        self._accept(path, status, body)
        return body

    async def _json(self, method: str, path: str, payload: Any, timeout_s: float) -> dict[str, Any]:
        status, body = await self._ask(method, path, payload, timeout_s)
        self._accept(path, status, body)
        if not isinstance(body, dict):
            raise ServerFault(self.name, f"{path}: an answer that is none: {_message(body)}")
        return body

    def _accept(self, path: str, status: int, body: Any) -> None:
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise Locked(
                self.name,
                f"it does not take this run's key ({path}: status {status}); see rollout.fleet.key_file",
            )
        if status != HTTPStatus.OK or (isinstance(body, dict) and body.get("success") is False):
            raise ServerFault(self.name, f"{path} was refused with status {status}: {_message(body)}")

    async def _ask(self, method: str, path: str, payload: Any, timeout_s: float) -> tuple[int, Any]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            # A server sends nobody elsewhere; whoever does shall not be followed with the key.
            async with self._http.request(
                method, self.url + path, json=payload, timeout=timeout, allow_redirects=False
            ) as response:
                data = bytearray()
                async for block in response.content.iter_chunked(1 << 16):
                    data += block
                    if len(data) > MOST_BYTES:
                        raise ValueError(f"an answer of more than {MOST_BYTES} bytes")
                is_json = response.content_type == "application/json"
                return response.status, read_json(bytes(data)) if is_json else data.decode(errors="replace")
        except TimeoutError:
            raise ServerFault(
                self.name, f"no answer to {path.partition('?')[0]} in {timeout_s:g} s"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ServerFault(
                self.name, f"{path.partition('?')[0]}: {type(error).__name__}: {error}"
            ) from None


def http_session(key: str | None) -> aiohttp.ClientSession:
    """For as many requests at once as there are episodes (the fleet bounds them). Made inside the event loop.

    Args:
        key: of the servers, carried by every request; None: they have none.
    """
    # Servers close connections that were idle for 5 s. One that is closed under a request would look like a
    # dead server: ours are given up before.
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=2.0)
    return aiohttp.ClientSession(connector=connector, headers=bearer(key))


def _piece(server: str, reply: Any) -> Piece:
    try:
        meta = reply["meta_info"]
        triples, reason = meta["output_token_logprobs"], checked(_Reason, meta["finish_reason"])
        first_token_s = checked(float | None, meta.get("first_token_latency"))  # type: ignore[arg-type]
        logprobs = np.array([t[0] for t in triples], dtype=np.float32)
        ids = np.array([t[1] for t in triples], dtype=np.int32)
        versions = _token_versions(meta, len(ids))
        cached_tokens = checked(int | None, meta.get("cached_tokens"))  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ServerFault(
            server, f"an answer that is none: {type(error).__name__}: {str(error)[:200]}"
        ) from None
    if reason["type"] == "abort" and reason.get("status_code"):
        if reason["status_code"] == HTTPStatus.BAD_REQUEST:
            raise Refused(f"{server}: {reason.get('message')}")
        raise ServerFault(server, f"it aborted a request: {reason.get('message')}")
    return Piece(ids, logprobs, versions, reason["type"], first_token_s, cached_tokens)


def _token_versions(meta: dict[str, Any], count: int) -> Ids:
    """A release without spans has one version for all tokens: weights change only while nothing is generated
    (`ServerClient.pause`)."""
    spans = meta.get("weight_versions") or [{"version": meta["weight_version"], "start": 0, "end": count}]
    versions = np.full(count, -1, dtype=np.int32)
    for span in spans:
        versions[span["start"] : span["end"]] = _number(span["version"])
    return versions


def _number(version: str) -> int:
    """Ours are numbers; a server that was given none says something else, and that is no version of ours."""
    return int(version) if str(version).isdigit() else -1


def _message(body: Any) -> str:
    if isinstance(body, dict):
        error = body.get("error")
        body = error.get("message", error) if isinstance(error, dict) else body.get("message", body)
    return " ".join(str(body).split())[:500]


async def each(jobs: Sequence[Any]) -> list[Any]:
    """Results and exceptions of coroutines, in their order (none is cancelled by another's failure)."""
    return await asyncio.gather(*jobs, return_exceptions=True)


async def all_well(jobs: Sequence[Any]) -> list[Any]:
    """All results, in order, once every job has ended. Raises the first error."""
    outcomes = await each(jobs)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes
