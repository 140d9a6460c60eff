"""A short scripted episode, made up: what a model would see of it, without any data at hand (`paw data search
prompt`)."""

from __future__ import annotations

from paw_hpc.envs.base import EnvironmentState, Turn
from paw_hpc.envs.search.prompt import SearchView
from paw_hpc.envs.templates import load_template
from paw_hpc.recipe import EnvSection

START = EnvironmentState(
    "Which river flows through the capital of the country where the painter was born?", ()
)
TURNS: tuple[Turn, ...] = (
    (
        "<search>painter born in</search>",
        EnvironmentState("Doc 1 (Title: The painter) The painter was born in a small country.", ()),
    ),
    ("", EnvironmentState("Invalid action: nothing was searched.", ())),
    (
        "<search>capital of the small country</search>",
        EnvironmentState("Doc 1 (Title: The country) Its capital lies on a river.", ()),
    ),
)


def example(env: EnvSection) -> tuple[SearchView, EnvironmentState, tuple[Turn, ...]]:
    """(the agent's view, the first state, what was done and what came of it). Raises RecipeError:
    `env.prompt_template` is no working template."""
    template = load_template("search", env.prompt_template)
    view = SearchView(
        START.observation,
        style=env.prompt,
        history=env.shown_history,
        max_steps=env.max_steps,
        template=template,
    )
    return view, START, TURNS
