"""A short scripted episode, made up: what a model would see of it, without any data at hand (`paw data
alfworld prompt`)."""

from __future__ import annotations

from paw_hpc.envs.alfworld.prompt import AlfworldView
from paw_hpc.envs.base import EnvironmentState, Task, Turn
from paw_hpc.envs.templates import load_template
from paw_hpc.recipe import EnvSection

_HOUSE = ("go to desk 1", "go to shelf 1", "help", "inventory", "look")
_AT_DESK = ("examine desk 1", "go to shelf 1", "help", "inventory", "look", "take mug 1 from desk 1")
_HOLDING = ("examine mug 1", "go to shelf 1", "help", "inventory", "look", "move mug 1 to desk 1")
_AT_SHELF = ("examine shelf 1", "go to desk 1", "help", "inventory", "look", "move mug 1 to shelf 1")

START = EnvironmentState(
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, "
    "you see a desk 1, and a shelf 1.\n\n"
    "Your task is to: put some mug on shelf.",
    _HOUSE,
)
TURNS: tuple[Turn, ...] = (
    (
        "go to desk 1",
        EnvironmentState("You arrive at desk 1. On the desk 1, you see a mug 1, and a pen 2.", _AT_DESK),
    ),
    ("take mug 1 from desk 1", EnvironmentState("You pick up the mug 1 from the desk 1.", _HOLDING)),
    ("go to shelf 1", EnvironmentState("You arrive at shelf 1. On the shelf 1, you see nothing.", _AT_SHELF)),
)


def example(env: EnvSection) -> tuple[AlfworldView, EnvironmentState, tuple[Turn, ...]]:
    """(the agent's view, the first state, what was done and what came of it). Raises RecipeError:
    `env.prompt_template` is no working template."""
    template = load_template("alfworld", env.prompt_template)
    task = Task("example", "pick_and_place_simple", "")
    view = AlfworldView(
        task, style=env.prompt, history=env.shown_history, seed=0, template=template, max_steps=env.max_steps
    )
    return view, START, TURNS
