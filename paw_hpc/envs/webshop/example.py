"""A short scripted episode, made up: what a model would see of it, without any data at hand (`paw data
webshop prompt`)."""

from __future__ import annotations

from paw_hpc.envs.base import EnvironmentState, Turn
from paw_hpc.envs.templates import load_template
from paw_hpc.envs.webshop.prompt import WebshopView
from paw_hpc.recipe import EnvSection

_RESULTS = (
    "Back to Search [SEP] Page 1 (Total results: 2) [SEP] Next > [SEP] B000000001 [SEP] Reading lamp, "
    "clip-on [SEP] $18.5 [SEP] "
    "B000000002 [SEP] Floor lamp [SEP] $64.0"
)
_ITEM = (
    "Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] white [SEP] Reading lamp, clip-on [SEP] "
    "Price: $18.5 [SEP] Rating: N.A. [SEP] "
    "Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
)
_ON_ITEM = tuple(
    f"click[{name}]"
    for name in ("back to search", "< prev", "description", "features", "reviews", "buy now", "red", "white")
)

START = EnvironmentState(
    "WebShop [SEP] Instruction: [SEP] Find me a clip-on reading lamp with color: red, and price lower than "
    "30.00 dollars [SEP] Search",
    ("search[<your query>]",),
)
TURNS: tuple[Turn, ...] = (
    (
        "search[red reading lamp]",
        EnvironmentState(
            _RESULTS, ("click[back to search]", "click[next >]", "click[b000000001]", "click[b000000002]")
        ),
    ),
    ("click[b000000001]", EnvironmentState(_ITEM, _ON_ITEM)),
    ("click[red]", EnvironmentState(_ITEM, _ON_ITEM)),
)


def example(env: EnvSection) -> tuple[WebshopView, EnvironmentState, tuple[Turn, ...]]:
    """(the agent's view, the first state, what was done and what came of it). Raises RecipeError:
    `env.prompt_template` is no working template."""
    template = load_template("webshop", env.prompt_template)
    view = WebshopView(
        style=env.prompt, history=env.shown_history, template=template, max_steps=env.max_steps
    )
    return view, START, TURNS
