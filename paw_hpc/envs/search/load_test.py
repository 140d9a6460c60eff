"""What a retrieval server bears: queries per second and waiting times under a number of clients that ask
without pause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from paw_hpc.system.errors import DataError, UserError
from paw_hpc.system.keys import bearer


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a load test. Times are of whole requests, in seconds."""

    requests: int
    failed: int
    queries_per_s: float
    p50_s: float
    p95_s: float
    p99_s: float


def load_test(
    url: str,
    queries: Sequence[str],
    *,
    requests: int,
    clients: int,
    batch: int,
    topk: int = 3,
    timeout_s: float = 60.0,
    key: str | None = None,
) -> Load:
    """Send `requests` requests of `batch` queries each from `clients` clients.

    Args:
        timeout_s: longest wait for one whole answer; a request without one has failed.
        key: what the server asks for.

    Raises:
        DataError: nothing healthy answers at that address.
        UserError: the server does not take the key.
    """
    return asyncio.run(
        _run(
            url.rstrip("/").removesuffix("/retrieve"), queries, requests, clients, batch, topk, timeout_s, key
        )
    )


async def _run(
    url: str,
    queries: Sequence[str],
    requests: int,
    clients: int,
    batch: int,
    topk: int,
    timeout_s: float,
    key: str | None,
) -> Load:
    waits, failed, upcoming = list[float](), 0, iter(range(requests))
    async with httpx.AsyncClient(
        timeout=None, limits=httpx.Limits(max_connections=clients), trust_env=False, headers=bearer(key)
    ) as client:
        try:
            async with asyncio.timeout(timeout_s):
                (await client.get(f"{url}/health")).raise_for_status()
                # Everybody may ask for its health.
                if (await client.post(f"{url}/retrieve", json={"queries": []})).status_code in (401, 403):
                    raise UserError(f"{url}: it does not take this key; see --key-file")
        except (httpx.HTTPError, TimeoutError) as error:
            raise DataError(
                f"{url}/health: no healthy server ({error or type(error).__name__}); start one with `paw "
                "data search serve`"
            ) from None

        async def ask_on() -> None:
            nonlocal failed
            for number in upcoming:
                asked = [queries[(number * batch + i) % len(queries)] for i in range(batch)]
                start = time.perf_counter()
                try:
                    async with asyncio.timeout(timeout_s):
                        answer = await client.post(
                            f"{url}/retrieve", json={"queries": asked, "topk": topk, "return_scores": True}
                        )
                    failed += answer.status_code != 200 or len(answer.json()["result"]) != batch
                except (httpx.HTTPError, TimeoutError, ValueError, KeyError):
                    failed += 1
                waits.append(time.perf_counter() - start)

        started = time.perf_counter()
        await asyncio.gather(*(ask_on() for _ in range(clients)))
        seconds = time.perf_counter() - started
    p50, p95, p99 = np.percentile(waits, [50, 95, 99])
    return Load(requests, failed, (requests - failed) * batch / seconds, float(p50), float(p95), float(p99))
