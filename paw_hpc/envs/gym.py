"""The environments as Gymnasium environments whose observations and actions are text (extra `gym`).

    env = TextEnv("webshop", panel="test", max_steps=15)
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(info["admissible"][0])

or `gymnasium.make("paw_hpc.envs.gym:paw/webshop", panel="test", max_steps=15)`. What an environment says is
handed on unchanged; `info` has what else there is to know of an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paw_hpc.envs.base import LONGEST_OBSERVATION, Task
from paw_hpc.envs.blocking import Environments, Episode
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.system.errors import UserError
from paw_hpc.system.extras import explained

try:
    import gymnasium
    from gymnasium.spaces import Text
except ModuleNotFoundError as missing:
    raise explained(missing) or missing from None

_SAMPLED = "".join(map(chr, range(32, 127)))
LONGEST_ACTION = 10_000
"""Characters of an action, in its space; environments themselves take longer ones."""


class UnicodeText(Text):
    """Strings of any characters. (A Text of Gymnasium lists its characters, and Unicode has a million.)
    Samples are printable ASCII."""

    def __init__(self, max_length: int, *, longest_sample: int = 200, seed: int | None = None):
        super().__init__(max_length, min_length=0, charset=_SAMPLED, seed=seed)
        self.longest_sample = longest_sample

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """As Text's; without a length in the mask, of `longest_sample` characters at most."""
        if mask is None and probability is None:
            mask = (int(self.np_random.integers(self.longest_sample + 1)), None)
        return super().sample(mask=mask, probability=probability)

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"


class TextEnv(gymnasium.Env[str, str]):
    """The tasks of one panel or split; each reset plays one of them.

    `terminated` says that the task is over: won, or lost for good (a purchase, an answer). `truncated` says
    that the limit of steps broke it off; an episode that is lost with its very last step counts as broken
    off.

    `info`: `task_id`, `task_type`, `admissible` (list, empty where the benchmark lists none), `state_key`,
    `success`, `score`, `steps`, `invalid`.

    Args:
        benchmark: alfworld, webshop, search, or a plugin's.
        panel: the panel whose tasks are played (as `paw eval --panel`); none: the benchmark's first.
        split: all tasks of a split instead, such as `train`.
        environments: open ones to share, whose rules then hold; they stay open when this is closed. None:
            this one's own.
        rules: `protocol`, `seed`, `plugins` and keys of a recipe's `env` section (see
            `paw_hpc.envs.Environments`).

    Raises:
        UserError: both panel and split, or rules beside environments; a key that does not fit; missing data.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(
        self,
        benchmark: str,
        *,
        panel: str | None = None,
        split: str | None = None,
        environments: Environments | None = None,
        render_mode: str | None = None,
        **rules: Any,
    ):
        if panel is not None and split is not None:
            raise UserError(f"panel '{panel}' and split '{split}': give one of the two")
        if environments is not None and (rules or environments.env.name != benchmark):
            raise UserError(
                f"environments: theirs are the rules, and they are {environments.env.name}'s; leave out "
                f"{', '.join(rules) or benchmark}"
            )
        if render_mode not in (None, "ansi"):
            raise UserError(f"render_mode '{render_mode}': 'ansi' (the text), or none")
        self.render_mode = render_mode
        self._own = environments is None
        self._environments = environments or Environments(benchmark, **rules)
        try:
            self.tasks: Sequence[Task] = (
                self._environments.tasks(split)
                if split is not None
                else self._environments.panel(panel).tasks
            )
        except BaseException:
            self.close()
            raise
        self._by_id: dict[str, Task] = {}
        self.episode: Episode | None = None
        """The one that is played, with all that there is to know of it."""
        self.observation_space = UnicodeText(LONGEST_OBSERVATION)
        self.action_space = UnicodeText(LONGEST_ACTION)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin an episode of a task that is drawn from this environment's own random numbers.

        Args:
            seed: of what is drawn from now on: equal seeds draw equal tasks.
            options: `task_id`, to play this task; `repeat`, which episode of it (default 0).

        Raises:
            UserError: an unknown option, or no task of this id here.
            EnvironmentFailure: the environment could not be started.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        task_id, repeat = options.pop("task_id", None), options.pop("repeat", 0)
        if options:
            raise UserError(
                f"reset: unknown option {', '.join(map(str, options))}; there are task_id and repeat"
            )
        task = (
            self.tasks[int(self.np_random.integers(len(self.tasks)))]
            if task_id is None
            else self._task(task_id)
        )
        self._leave()
        self.episode = self._environments.open(task, repeat=repeat)
        return self.episode.observation, self._info(self.episode)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Raises UserError: no episode is being played. EnvironmentFailure: the environment broke down; reset
        goes on."""
        if self.episode is None:
            raise UserError("step: no episode is being played; reset first")
        state = self.episode.step(action)
        over = state.success or self.episode.steps < self._environments.env.max_steps
        return (
            state.observation,
            state.reward,
            state.done and over,
            state.done and not over,
            self._info(self.episode),
        )

    def render(self) -> Any:
        """With render_mode `ansi` the text that the environment said last, else nothing."""
        return self.episode.observation if self.render_mode == "ansi" and self.episode is not None else None

    def close(self) -> None:
        """End the episode, and the environments where they are this one's own."""
        if self._own:
            self._environments.close()
        elif getattr(self, "episode", None) is not None:
            self._leave()

    def _leave(self) -> None:
        if self.episode is not None:
            self.episode.close()
        self.episode = None

    def _task(self, task_id: str) -> Task:
        if not self._by_id:
            self._by_id = {task.task_id: task for task in self.tasks}
        if task_id not in self._by_id:
            raise UserError(
                f"reset: {task_id} is none of the {len(self.tasks)} tasks here; `tasks` lists them"
            )
        return self._by_id[task_id]

    @staticmethod
    def _info(episode: Episode) -> dict[str, Any]:
        return {
            "task_id": episode.task.task_id,
            "task_type": episode.task.task_type,
            "admissible": list(episode.admissible),
            "state_key": episode.state_key,
            "success": episode.success,
            "score": episode.score,
            "steps": episode.steps,
            "invalid": episode.invalid,
        }


for _name in BENCHMARKS.names():
    gymnasium.register(f"paw/{_name}", entry_point="paw_hpc.envs.gym:TextEnv", kwargs={"benchmark": _name})
