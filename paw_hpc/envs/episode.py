"""What there is to know of an episode that is being played, whoever plays it (`paw_hpc.envs.sessions`,
`paw_hpc.envs.blocking`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paw_hpc.envs.base import AgentView, EnvironmentState, Message, Session, Task, Turn
from paw_hpc.envs.outcomes import Outcome
from paw_hpc.system.errors import UserError
from paw_hpc.system.seeding import derive_seed, name_seed

if TYPE_CHECKING:
    from paw_hpc.envs.sessions import AsyncEnvironments


class EpisodeRecord:
    """What there is to know of an episode at any moment; what it does is in `AsyncEpisode` and
    `paw_hpc.envs.blocking.Episode`."""

    def __init__(self, environments: AsyncEnvironments, task: Task, repeat: int):
        self.task, self.repeat = task, repeat
        self.seed = derive_seed(environments.seed, "eval", 0, name_seed(task.task_id), repeat)
        """As `paw eval` seeds this repeat of this task (`eval.seeds: task`); it orders the actions of the
        compact prompt."""
        self.state = self._start = EnvironmentState("")
        """What the environment said last."""
        self.steps = 0
        """Actions taken."""
        self.invalid = 0
        """How many of them were malformed or not admissible, where the benchmark can tell."""
        self.episode_return = 0.0
        """Undiscounted, without penalties."""
        self.failed = False
        """The environment, not the agent, broke down, or the wait for it was broken off: the episode is over
        and counts in no rate."""
        self._environments = environments
        self._session: Session | None = None
        self._view: AgentView | None = None
        self._unseen: list[Turn] = []

    @property
    def observation(self) -> str:
        return self.state.observation

    @property
    def admissible(self) -> tuple[str, ...]:
        """Actions that can be taken now; empty where the benchmark lists none."""
        return self.state.admissible

    @property
    def done(self) -> bool:
        """It was won, lost or broken off by its limit of steps, or the environment failed."""
        return self.state.done or self.failed

    @property
    def success(self) -> bool:
        return self.state.success

    @property
    def score(self) -> float:
        """The benchmark's own, in [0, 1]; where it has none, 1 for success."""
        return self.state.score

    @property
    def state_key(self) -> str:
        """Equal where an episode is in the same state, as far as its observation and its admissible actions
        tell: what GiGPO groups by."""
        anchor, listed = self._agent().anchor(), self.state.admissible
        return f"{anchor}\n{'|'.join(listed)}" if listed else anchor

    def admits(self, action: str) -> bool:
        """Whether an action is well-formed and can be taken now; True where the benchmark cannot tell."""
        return self._environments._admits(action, self.state)

    def messages(self) -> list[Message]:
        """The prompt for this step, by the rules (`prompt`, `prompt_template`, `history`); what a model says
        to it goes to `respond`."""
        return self._agent().messages()

    def turn(self) -> str:
        """What the next user turn of a conversation says: the whole prompt at first, then what was observed
        and what is said behind it.

        For callers that keep the messages (`prompt="conversation"` or "paper"); what a model says to it goes
        to `respond`.

        Raises:
            UserError: a benchmark that plays no conversations.
        """
        view = self._agent()
        if not self.steps:
            return "\n\n".join(message["content"] for message in view.messages())
        if not callable(getattr(view, "next_turn", None)):
            raise UserError(
                f"{self._environments.env.name}: its {type(view).__name__} has no next_turn; ask for "
                "messages() at every step"
            )
        return f"{self.observation}\n{view.next_turn()}"  # type: ignore[attr-defined]

    def _agent(self) -> AgentView:
        """The agent's view, which learns of what has happened only here: most of a fast environment's time
        would go into prompts nobody asks for."""
        if self._view is None:
            self._view = self._environments.benchmark.view(self.task, self.seed)
            self._view.start(self._start)
        for action, state in self._unseen:
            self._view.observe(action, state)
        self._unseen.clear()
        return self._view

    def outcome(self) -> Outcome:
        """How it went, as a line of a file of outcomes; an episode that was left before its end has failed.

        Raises:
            UserError: the environment broke it; such episodes are counted apart (`write_outcomes(...,
                environment_failures=)`).
        """
        if self.failed:
            raise UserError(
                f"{self.task.task_id}: the environment broke this episode, so it has no outcome; count it "
                "in environment_failures"
            )
        return Outcome(
            task_id=self.task.task_id,
            task_type=self.task.task_type,
            repeat=self.repeat,
            seed=self.seed,
            success=self.state.success if self.done else False,
            score=self.state.score if self.done else 0.0,
            steps=self.steps,
            invalid=self.invalid,
            episode_return=self.episode_return,
        )
