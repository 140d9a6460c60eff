"""What a model would see of a benchmark's short made-up episode, without any data at hand (`paw data
BENCHMARK prompt`)."""

from __future__ import annotations

from paw_hpc.envs.base import ConversationView, EnvironmentState
from paw_hpc.recipe import EnvSection
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.system.errors import UserError


def example_prompts(env: EnvSection) -> list[str]:
    """The user message of every step of the benchmark's scripted episode, first step first; of a
    conversation, what each step adds.

    Raises:
        RecipeError: `env.prompt_template` is no working template.
        UserError: the benchmark brings no such episode.
    """
    example = BENCHMARKS.find(env.name).example
    if example is None:
        raise UserError(f"env.name: {env.name} brings no example of an episode")
    view: ConversationView
    start: EnvironmentState
    view, start, turns = example(env)
    view.start(start)
    shown = [view.messages()[0]["content"]]
    for action, state in turns:
        view.observe(action, state)
        shown.append(
            f"{state.observation}\n{view.next_turn()}" if env.conversation else view.messages()[0]["content"]
        )
    return shown
