"""Passes over the weights, and what the processes that share them tell each other about these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from paw_hpc.rollout.sglang.lifecycle import Server
from paw_hpc.rollout.sglang.publish.buckets import NamedTensors, Weights
from paw_hpc.rollout.sglang.publish.checks import WeightSample
from paw_hpc.system import distributed


@dataclass(frozen=True, slots=True)
class WholePass:
    """Every process takes part in one pass over all tensors."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server as other processes of the trainer see it."""

    name: str
    url: str
    ranks: int
    device: str

    @classmethod
    def of(cls, server: Server) -> Address:
        return cls(server.name, server.http.url, server.ranks, server.device)


@dataclass(frozen=True, slots=True)
class StagePass:
    """Every pipeline stage sends its own tensors to these servers, and takes this sample of them."""

    servers: tuple[Address, ...]
    sample: WeightSample
    key: str | None = field(default=None, repr=False)
    """Of the servers."""


@dataclass(frozen=True, slots=True)
class Ended:
    """No further pass; `error`: why the run ends, or nothing."""

    error: str = ""


Order = WholePass | StagePass | Ended


class Passes:
    """The passes of one publication: each is seen by its sample, and begun by all processes that share the
    weights.

    Args:
        give_order: gives an order to the other processes; None: there are none.
    """

    def __init__(self, weights: Weights, give_order: Callable[[Order], None] | None, sample: WeightSample):
        self.weights, self.give_order, self.sample = weights, give_order, sample
        self._passing: NamedTensors = iter(())

    def __call__(self) -> NamedTensors:
        """One pass over all tensors."""
        if self.give_order is not None:
            self.give_order(WholePass())
        self._passing = self.sample.watch(self.weights.tensors())
        return self._passing

    def finish(self) -> None:
        """Go through what is left of the pass: the other processes gather in step, also where sending has
        failed."""
        for _ in self._passing:
            pass


class StageSender(Protocol):
    """What sends the tensors of one pipeline stage (see `stages.StagedBroadcast`)."""

    def follow(self, order: StagePass) -> None: ...

    def close(self) -> None: ...


class FollowingPublisher:
    """The publisher of every process but the first, which publishes: takes part in its passes over the
    weights.

    Args:
        receive: what the first process tells.
        stages: sends this process's part where stages send for themselves.
    """

    def __init__(self, weights: Weights, receive: Callable[[], Order], stages: StageSender | None):
        self._weights, self._receive, self._stages = weights, receive, stages

    def publish(self, version: int) -> None:
        """See `Publisher.publish`. Ends this process where the first one has met an error, which says it."""
        while not isinstance(order := self._receive(), Ended):
            if isinstance(order, StagePass):
                assert self._stages is not None, "only those that have stages are told to send them"
                self._stages.follow(order)
            else:
                for _ in self._weights.tensors():
                    pass
        if order.error:
            raise distributed.PeerFailed(2)

    @contextmanager
    def while_players_play(self) -> Iterator[None]:
        """While the first process plays, a server may come back, and has to be given the weights again."""
        self.publish(version=-1)
        yield

    def close(self) -> None:
        if self._stages is not None:
            self._stages.close()
