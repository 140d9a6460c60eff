"""A small benchmark and a small engine for tests of the collector, both functions of seeds and texts alone,
with delays and failures on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from paw_hpc.envs.alfworld.prompt import AlfworldView
from paw_hpc.envs.alfworld.tokenizer import alfworld_texts, build_tokenizer
from paw_hpc.envs.base import EnvironmentFailure, EnvironmentState, Task
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.collector import PlaySettings
from paw_hpc.rollout.engines.base import Completion, GenerationRequest

TOKENIZER = build_tokenizer(
    ["task: did: saw: now: start can: > ; , . <think></think><action></action>", *alfworld_texts()]
)
CHAT = ChatFormat(TOKENIZER)
COMMANDS = ("go to desk 1", "go to desk 2", "go to desk 3", "look")
SAYINGS = (*COMMANDS, "go to bed 1", "look look look")
SETTINGS = PlaySettings(
    run_seed=7,
    purpose="train",
    temperature=0.8,
    max_prompt_tokens=300,
    max_response_tokens=12,
    max_observation_tokens=64,
)
Delay = Callable[[], float]


class World:
    """A benchmark of desks: reaching the task's desk from the third step on wins. Plays `AlfworldView`s.

    Args:
        delay: seconds that a reset or step takes; asked each time.
        broken: (task id, member or None for the reset, step) at which the environment fails.
        observation: what is said at a desk.
    """

    def __init__(
        self,
        delay: Delay = lambda: 0.0,
        broken: Sequence[tuple[str, int | None, int]] = (),
        max_steps: int = 5,
        style: str = "compact",
    ):
        self.delay, self.broken, self.max_steps, self.style = delay, set(broken), max_steps, style
        self.observation = "You arrive at {}. On the {}, you see a mug 1."
        self.open_sessions = 0
        self.events: list[tuple[str, int, int]] = []

    def view(self, task: Task, seed: int) -> AlfworldView:
        return AlfworldView(task, style=self.style, history=2, seed=seed)

    async def open(self, task: Task, members: int) -> Sequence[Desk]:
        await asyncio.sleep(self.delay())
        if (task.task_id, None, 0) in self.broken:
            raise EnvironmentFailure(f"{task.task_id}: it does not load")
        self.open_sessions += members
        return [Desk(self, task, member) for member in range(members)]

    def tasks(self, split: str) -> list[Task]:
        return [Task(f"t{i}", "pick_and_place_simple", str(i % 3 + 1)) for i in range(6)]

    async def close(self) -> None: ...


class Desk:
    def __init__(self, world: World, task: Task, member: int):
        self.world, self.task, self.member, self.steps, self.closed = world, task, member, 0, False

    async def reset(self) -> EnvironmentState:
        return EnvironmentState(
            "You are in the middle of a room.\n\nYour task is to: put some mug on desk.", COMMANDS
        )

    async def step(self, action: str) -> EnvironmentState:
        assert not self.closed
        await asyncio.sleep(self.world.delay())
        self.steps += 1
        self.world.events.append((self.task.task_id, self.member, self.steps))
        if (self.task.task_id, self.member, self.steps) in self.world.broken:
            raise EnvironmentFailure(f"{self.task.task_id}: it broke")
        place = action.removeprefix("go to ")
        said = self.world.observation.format(place, place) if action in COMMANDS else "Nothing happens."
        won = action == f"go to desk {self.task.source}" and self.steps >= 3
        return EnvironmentState(
            said, COMMANDS, 10.0 if won else 0.0, won or self.steps == self.world.max_steps, won, float(won)
        )

    async def close(self) -> None:
        self.world.open_sessions -= not self.closed
        self.closed = True


class Parrot:
    """An engine that says one of SAYINGS, chosen by seed and prompt alone; every third answer is cut off."""

    def __init__(self, delay: Delay = lambda: 0.0, entropies: bool = True):
        self.delay, self.entropies = delay, entropies
        self.requests: list[GenerationRequest] = []
        self.joined: set[int] = set()
        self.history: list[tuple[str, int]] = []

    def join(self, episode: int) -> None:
        self.joined.add(episode)
        self.history.append(("join", episode))

    def leave(self, episode: int) -> None:
        self.joined.discard(episode)

    async def generate(self, request: GenerationRequest) -> Completion:
        self.history.append(("generate", request.episode))
        assert request.episode in self.joined
        self.requests.append(request)
        await asyncio.sleep(self.delay())
        return self.answer(request)

    def answer(self, request: GenerationRequest) -> Completion:
        rng = np.random.default_rng([request.seed, *request.prompt_ids.tolist()])
        ids = CHAT.answer(SAYINGS[int(rng.integers(len(SAYINGS)))])
        finished = bool(rng.integers(3))
        ids = ids if finished else ids[:-1]
        numbers = rng.random(len(ids)).astype(np.float32)
        return Completion(
            ids, -numbers, numbers if self.entropies else None, weight_version=3, finished=finished
        )
