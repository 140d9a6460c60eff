"""What goes over the socket of an OpenEnv server (see openenv.py), and the client's end of it."""

from __future__ import annotations

import contextlib
from typing import Any

from paw_hpc.envs.outcomes import Outcome
from paw_hpc.system.extras import explained
from paw_hpc.system.keys import bearer

try:
    from openenv.core import EnvClient
    from openenv.core.client_types import StepResult
    from openenv.core.env_server.types import Action, Observation, State
    from pydantic import Field
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed
except ModuleNotFoundError as missing:
    raise explained(missing) or missing from None

LONGEST_ACTION = 100_000
"""Characters of an action or a response."""
LONGEST_MESSAGE_BYTES = 1 << 20


class TextAction(Action):
    """What an agent does."""

    action: str = Field(
        max_length=LONGEST_ACTION, description="In the environment's own words, or a model's response."
    )
    response: bool = Field(
        default=False, description="It is a model's response to `messages`, to be read by the server's rules."
    )


class TextObservation(Observation):
    """What an environment says, and what else there is to know of the episode."""

    observation: str
    admissible: list[str] = Field(
        description="Actions that can be taken now; empty where the benchmark lists none."
    )
    success: bool
    score: float
    steps: int
    invalid: int = Field(description="Actions so far that were malformed or not admissible.")
    task_id: str
    task_type: str
    repeat: int
    seed: int = Field(description="Of this episode; only told.")
    episode_return: float = Field(description="Undiscounted, without penalties.")
    state_key: str | None = Field(
        default=None, description="Equal in equal states; where `reset` asked for prompts."
    )
    messages: list[dict[str, str]] | None = Field(
        default=None, description="The prompt for this step; where `reset` asked for prompts."
    )

    def outcome(self) -> Outcome:
        """How the episode went, as a line of a file of outcomes (`write_outcomes`); one that was left before
        its end has failed."""
        score = self.score if self.done else 0.0
        so_far = self.steps, self.invalid, self.episode_return
        return Outcome(
            self.task_id, self.task_type, self.repeat, self.seed, self.success and self.done, score, *so_far
        )


class TextClient(EnvClient[TextAction, TextObservation, State]):
    """One session with a server, over a websocket; `client.sync()` is the same without coroutines.

    Args:
        base_url: `http://HOST:PORT`.
        key: what the server asks for.
        settings: OpenEnv's own: `connect_timeout_s`, `message_timeout_s`, `max_message_size_mb`.
    """

    def __init__(self, base_url: str, *, key: str | None = None, **settings: Any):
        self._ws: Any
        super().__init__(base_url, **settings)
        self._key = key

    async def connect(self) -> TextClient:
        """Raises ConnectionError: no such server, or another key."""
        if self._key is None:
            await super().connect()
        elif self._ws is None:
            try:  # by no proxy: the key is for the server alone
                self._ws = await connect(
                    self._ws_url,
                    open_timeout=self._connect_timeout,
                    max_size=self._max_message_size,
                    additional_headers=bearer(self._key),
                    proxy=None,
                )
            except Exception as error:
                raise ConnectionError(f"Failed to connect to {self._ws_url}: {error}") from error
        return self

    async def _send(self, message: dict[str, Any]) -> None:
        # why the server has closed it (it is full, say) is what is received next
        with contextlib.suppress(ConnectionClosed):
            await super()._send(message)

    def _step_payload(self, action: TextAction) -> dict[str, Any]:
        return {"action": action.action, "response": action.response}

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[TextObservation]:
        observation = TextObservation(
            **payload["observation"], reward=payload["reward"], done=payload["done"]
        )
        return StepResult(observation=observation, reward=payload["reward"], done=payload["done"])

    def _parse_state(self, payload: dict[str, Any]) -> State:
        return State(**payload)
