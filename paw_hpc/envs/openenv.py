"""The environments as an OpenEnv server and its client (extra `openenv`): one process, many sessions, each
with an episode of its own.

    python -m paw_hpc.envs.openenv webshop max_steps=15 --panel test --port 8000 --sessions 256 --key-file key

    async with TextClient("http://127.0.0.1:8000", key=key) as client:
        result = await client.reset(seed=0)
        result = await client.step(TextAction(action=result.observation.admissible[0]))

Other clients speak OpenEnv's protocol: a websocket at /ws, JSON messages. With a key, whoever does not send
it (`Authorization: Bearer KEY`) hears from /health that the server lives, and from everything else status
401, or 403 at /ws. Sessions share the environments of the process, and see nothing of each other.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from random import Random
from typing import Any

from paw_hpc.envs.base import EnvironmentState, Task
from paw_hpc.envs.blocking import Environments, Episode
from paw_hpc.envs.sockets import Guard, unless_gone
from paw_hpc.run.limits import allow_files
from paw_hpc.system.errors import UserError
from paw_hpc.system.extras import explained
from paw_hpc.system.keys import KeyDoor, read_key

try:
    from openenv.core.env_server.http_server import create_fastapi_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import ConcurrencyConfig, EnvironmentMetadata, State

    from paw_hpc.envs.openenv_client import LONGEST_ACTION as LONGEST_ACTION
    from paw_hpc.envs.openenv_client import LONGEST_MESSAGE_BYTES as LONGEST_MESSAGE_BYTES
    from paw_hpc.envs.openenv_client import TextAction as TextAction
    from paw_hpc.envs.openenv_client import TextClient as TextClient
    from paw_hpc.envs.openenv_client import TextObservation as TextObservation
    from paw_hpc.envs.serving import MOST_WAITED_FOR, WholeBody, serve
except ModuleNotFoundError as missing:
    raise explained(missing) or missing from None

FILES_OF_A_SESSION = 2
"""Its websocket, and the socket to its episode's process where it has one."""
REPEATS = 1024
"""Episodes of a task, counted from 0: a later one costs the start of those before it."""


class Served:
    """What all sessions of a server share: open environments, and the tasks that are played.

    Args:
        panel, split: one of the two, or none for the benchmark's first panel.
    """

    def __init__(self, environments: Environments, *, panel: str | None = None, split: str | None = None):
        if panel is not None and split is not None:
            raise UserError(f"panel '{panel}' and split '{split}': give one of the two")
        self.environments = environments
        self.tasks: Sequence[Task] = (
            environments.tasks(split) if split is not None else environments.panel(panel).tasks
        )
        self.by_id = {task.task_id: task for task in self.tasks}


class TextEnvironment(Environment[TextAction, TextObservation, State]):
    """One session: an episode after the other."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, served: Served):
        super().__init__()
        self._served, self._random, self._prompts, self._ended = served, Random(), False, False
        self._episode: Episode | None = None
        self._episode_id: str | None = None

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        *,
        task_id: str | None = None,
        repeat: int = 0,
        prompts: bool = False,
        **unknown: Any,
    ) -> TextObservation:
        """Begin an episode.

        Args:
            seed: of the tasks that are drawn from now on.
            episode_id: told back by `state`.
            task_id: play this task; none: draw one.
            repeat: which of the episodes of the task, from 0.
            prompts: send `messages` and `state_key` with every observation of the episode.

        Raises:
            UserError: an unknown task or argument, or a value that cannot be.
            EnvironmentFailure: the environment could not be started.
        """
        task = self._chosen(seed, task_id, repeat, unknown)
        self._leave()
        self._episode, self._prompts, self._episode_id = (
            self._served.environments.open(task, repeat=repeat),
            bool(prompts),
            episode_id,
        )
        return self._observation(self._episode.state)

    async def reset_async(
        self, seed: int | None = None, episode_id: str | None = None, **options: Any
    ) -> TextObservation:
        """`reset`, while the server answers others; given up when the client goes."""
        return await unless_gone(self._reset_async(seed, episode_id, **options))

    async def _reset_async(
        self,
        seed: int | None,
        episode_id: str | None,
        *,
        task_id: str | None = None,
        repeat: int = 0,
        prompts: bool = False,
        **unknown: Any,
    ) -> TextObservation:
        task = self._chosen(seed, task_id, repeat, unknown)
        await asyncio.to_thread(self._leave)
        self._episode = await self._served.environments.open_async(task, repeat=repeat)
        self._prompts, self._episode_id = bool(prompts), episode_id
        if self._ended:  # meanwhile
            self._leave()
        return self._observation(self._playing().state)

    def step(self, action: TextAction, timeout_s: float | None = None, **unknown: Any) -> TextObservation:
        """Take an action. Raises UserError: no episode is being played, or it is over. EnvironmentFailure:
        the environment broke down."""
        episode = self._playing()
        return self._observation(
            episode.respond(action.action) if action.response else episode.step(action.action)
        )

    async def step_async(
        self, action: TextAction, timeout_s: float | None = None, **unknown: Any
    ) -> TextObservation:
        """`step`, while the server answers others; given up when the client goes, and the episode with it."""
        return self._observation(
            await unless_gone(self._playing().act_async(action.action, response=action.response))
        )

    @property
    def state(self) -> State:
        if self._episode is None:
            return State(episode_id=self._episode_id)
        return State(
            episode_id=self._episode_id,
            step_count=self._episode.steps,
            task_id=self._episode.task.task_id,
            repeat=self._episode.repeat,
        )

    def get_metadata(self) -> EnvironmentMetadata:
        from paw_hpc import __version__

        name = self._served.environments.env.name
        return EnvironmentMetadata(
            name=name,
            description=f"{self._served.environments.source}; {len(self._served.tasks)} tasks",
            version=__version__,
        )

    def close(self) -> None:
        """End the session. (One that was idle for too long is closed before its client goes, and nobody would
        close it again.) The environments stay open for others."""
        self._ended = True
        self._leave()

    def _leave(self) -> None:
        episode, self._episode = self._episode, None
        if episode is not None:
            episode.close()

    def _chosen(self, seed: int | None, task_id: str | None, repeat: int, unknown: dict[str, Any]) -> Task:
        if self._ended:
            raise UserError(
                "reset: this session has ended, perhaps because it was idle for too long; connect anew"
            )
        if unknown:
            raise UserError(
                f"reset: unknown argument {', '.join(unknown)}; there are seed, episode_id, task_id, "
                "repeat, prompts"
            )
        if not isinstance(repeat, int) or not 0 <= repeat < REPEATS:
            raise UserError(f"reset: repeat is {str(repeat)[:40]}, and is from 0 to {REPEATS - 1}")
        if seed is not None:
            self._random.seed(int(seed))
        if task_id is None:
            return self._served.tasks[self._random.randrange(len(self._served.tasks))]
        if task_id not in self._served.by_id:
            raise UserError(
                f"reset: {str(task_id)[:200]} is none of the {len(self._served.tasks)} tasks here"
            )
        return self._served.by_id[task_id]

    def _playing(self) -> Episode:
        if self._episode is None:
            raise UserError(
                "step: no episode is being played in this session; reset first (sessions are websockets at "
                "/ws)"
            )
        return self._episode

    def _observation(self, state: EnvironmentState) -> TextObservation:
        episode = self._playing()
        return TextObservation(
            observation=state.observation,
            admissible=list(state.admissible),
            reward=state.reward,
            done=state.done,
            success=state.success,
            score=state.score,
            steps=episode.steps,
            invalid=episode.invalid,
            task_id=episode.task.task_id,
            task_type=episode.task.task_type,
            repeat=episode.repeat,
            seed=episode.seed,
            episode_return=episode.episode_return,
            state_key=episode.state_key if self._prompts else None,
            messages=episode.messages() if self._prompts and not state.done else None,
        )


def make_app(
    served: Served, *, sessions: int = 64, idle_s: float | None = 3600.0, key: str | None = None
) -> Any:
    """The server as an ASGI application.

    Args:
        sessions: at most so many at once; a further one is told that the server is full.
        idle_s: a session from which nothing is heard for so long is ended; none: never.
        key: what a client must send; None lets everybody play.
    """
    limits = ConcurrencyConfig(max_concurrent_envs=sessions, session_timeout=idle_s)
    app = create_fastapi_app(
        lambda: TextEnvironment(served), TextAction, TextObservation, concurrency_config=limits
    )
    app.add_middleware(Guard, idle_s=idle_s)
    app.add_middleware(WholeBody, longest=LONGEST_MESSAGE_BYTES)
    if key is not None:
        app.add_middleware(KeyDoor, key=key, health="/health")
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal ends it."""
    from omegaconf import OmegaConf

    parser = argparse.ArgumentParser(
        prog="python -m paw_hpc.envs.openenv", description="An OpenEnv server of a benchmark's tasks."
    )
    parser.add_argument("benchmark")
    parser.add_argument(
        "keys",
        nargs="*",
        metavar="KEY=VALUE",
        help="keys of a recipe's env section, such as webshop.catalogue=small",
    )
    parser.add_argument("--protocol", help="begin with the rules of this protocol: reference or ours")
    parser.add_argument("--panel", help="play this panel's tasks (default: the benchmark's first)")
    parser.add_argument("--split", help="play all tasks of this split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for other machines"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--sessions", type=int, default=64, help="at most so many at once")
    parser.add_argument(
        "--idle-s", type=float, default=3600.0, help="a session is ended after so many seconds without a word"
    )
    parser.add_argument("--key-file", help="file with the key that clients must send, mode 0600")
    given = parser.parse_args(arguments)
    try:
        key = None if given.key_file is None else read_key(given.key_file, "--key-file")
        keys: Any = OmegaConf.to_container(OmegaConf.from_dotlist(given.keys))
        with Environments(given.benchmark, protocol=given.protocol, seed=given.seed, **keys) as environments:
            served = Served(environments, panel=given.panel, split=given.split)
            who = "with a key" if key else "without a key: whoever reaches it may play"
            print(
                f"{environments.source}, {len(served.tasks)} tasks, at http://{given.host}:{given.port}, "
                f"{who}",
                file=sys.stderr,
                flush=True,
            )
            app = make_app(served, sessions=given.sessions, idle_s=given.idle_s, key=key)
            allow_files(
                FILES_OF_A_SESSION * given.sessions + MOST_WAITED_FOR,
                "this server",
                f"--sessions {given.sessions}",
            )
            serve(app, given.host, given.port, ws_max_size=LONGEST_MESSAGE_BYTES)
    except UserError as error:
        sys.exit(f"paw: {error}")


if __name__ == "__main__":
    main()
