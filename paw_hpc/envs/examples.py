"""A short scripted episode of each benchmark, made up: what a model would see of it, without any data at hand (`paw data BENCHMARK prompt`)."""

from __future__ import annotations

from collections.abc import Sequence

from paw_hpc.envs.base import AgentView, EnvironmentState, Task
from paw_hpc.recipe import BenchmarkName, EnvSection

Turn = tuple[str, EnvironmentState]
"""An action, and what came of it."""

_HOUSE = ("go to desk 1", "go to shelf 1", "help", "inventory", "look")
_AT_DESK = ("examine desk 1", "go to shelf 1", "help", "inventory", "look", "take mug 1 from desk 1")
_HOLDING = ("examine mug 1", "go to shelf 1", "help", "inventory", "look", "move mug 1 to desk 1")
_AT_SHELF = ("examine shelf 1", "go to desk 1", "help", "inventory", "look", "move mug 1 to shelf 1")
_RESULTS = (
    "Back to Search [SEP] Page 1 (Total results: 2) [SEP] Next > [SEP] B000000001 [SEP] Reading lamp, clip-on [SEP] $18.5 [SEP] "
    "B000000002 [SEP] Floor lamp [SEP] $64.0"
)
_ITEM = (
    "Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] white [SEP] Reading lamp, clip-on [SEP] Price: $18.5 [SEP] Rating: N.A. [SEP] "
    "Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
)
_ON_ITEM = tuple(f"click[{name}]" for name in ("back to search", "< prev", "description", "features", "reviews", "buy now", "red", "white"))
_EPISODES: dict[str, tuple[EnvironmentState, Sequence[Turn]]] = {
    "alfworld": (
        EnvironmentState(
            "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see a desk 1, and a shelf 1.\n\n"
            "Your task is to: put some mug on shelf.",
            _HOUSE,
        ),
        (
            ("go to desk 1", EnvironmentState("You arrive at desk 1. On the desk 1, you see a mug 1, and a pen 2.", _AT_DESK)),
            ("take mug 1 from desk 1", EnvironmentState("You pick up the mug 1 from the desk 1.", _HOLDING)),
            ("go to shelf 1", EnvironmentState("You arrive at shelf 1. On the shelf 1, you see nothing.", _AT_SHELF)),
        ),
    ),
    "webshop": (
        EnvironmentState(
            "WebShop [SEP] Instruction: [SEP] Find me a clip-on reading lamp with color: red, and price lower than 30.00 dollars [SEP] Search",
            ("search[<your query>]",),
        ),
        (
            (
                "search[red reading lamp]",
                EnvironmentState(_RESULTS, ("click[back to search]", "click[next >]", "click[b000000001]", "click[b000000002]")),
            ),
            ("click[b000000001]", EnvironmentState(_ITEM, _ON_ITEM)),
            ("click[red]", EnvironmentState(_ITEM, _ON_ITEM)),
        ),
    ),
    "search": (
        EnvironmentState("Which river flows through the capital of the country where the painter was born?", ()),
        (
            ("<search>painter born in</search>", EnvironmentState("Doc 1 (Title: The painter) The painter was born in a small country.", ())),
            ("", EnvironmentState("Invalid action: nothing was searched.", ())),
            ("<search>capital of the small country</search>", EnvironmentState("Doc 1 (Title: The country) Its capital lies on a river.", ())),
        ),
    ),
}


def example_prompts(env: EnvSection) -> list[str]:
    """The user message of every step of the scripted episode, first step first.

    Raises:
        RecipeError: `env.prompt_template` is no working template.
    """
    start, turns = _EPISODES[env.name]
    view = _view(env, start.observation)
    view.start(start)
    shown = [view.messages()[0]["content"]]
    for action, state in turns:
        view.observe(action, state)
        shown.append(view.messages()[0]["content"])
    return shown


def _view(env: EnvSection, question: str) -> AgentView:
    from paw_hpc.envs.templates import load_template

    name: BenchmarkName = env.name
    template = load_template(name, env.prompt_template)
    if name == "alfworld":
        from paw_hpc.envs.alfworld.prompt import AlfworldView

        task = Task("example", "pick_and_place_simple", "")
        return AlfworldView(task, style=env.prompt, history=env.history, seed=0, template=template, max_steps=env.max_steps)
    if name == "webshop":
        from paw_hpc.envs.webshop.prompt import WebshopView

        return WebshopView(style=env.prompt, history=env.history, template=template, max_steps=env.max_steps)
    from paw_hpc.envs.search.prompt import SearchView

    return SearchView(question, style=env.prompt, history=env.history, max_steps=env.max_steps, template=template)
