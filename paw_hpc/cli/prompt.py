"""`paw data BENCHMARK prompt`"""

from __future__ import annotations

from typing import Annotated

import typer

from paw_hpc.system.errors import UserError

TemplateOption = Annotated[
    str, typer.Option(help="default, reference, or a Jinja2 file (as env.prompt_template).")
]
StyleOption = Annotated[
    str, typer.Option(help="paper, compact, conversation or compact-conversation (as env.prompt).")
]
_STEPS = {"alfworld": 50, "webshop": 15, "search": 4}
_HISTORY = {"alfworld": 2, "webshop": 2, "search": 4}


def add_prompt(app: typer.Typer, benchmark: str) -> None:
    """Give a benchmark's commands the one that shows its prompts."""

    @app.command("prompt")
    def command(template: TemplateOption = "default", style: StyleOption = "paper") -> None:
        """Show what a model would see at the first and at a later step of a made-up episode (before its chat
        template)."""
        _prompt(benchmark, template, style)


def _prompt(benchmark: str, template: str, style: str) -> None:
    from paw_hpc.envs.examples import example_prompts
    from paw_hpc.recipe import parse_recipe
    from paw_hpc.recipe.env import CONVERSATIONS, PROMPT_STYLES

    if style not in PROMPT_STYLES:
        raise UserError(f"--style {style}: one of {', '.join(PROMPT_STYLES)}")
    history = "all" if style in CONVERSATIONS else _HISTORY[benchmark]
    env = {"name": benchmark, "prompt": style, "max_steps": _STEPS[benchmark], "history": history}
    recipe = parse_recipe(
        {"env": {**env, "prompt_template": template}, "model": {"path": "none"}}, where="--template"
    )
    shown = example_prompts(recipe.env)
    for step in (1, len(shown)):
        print(f"----- step {step} -----\n{shown[step - 1]}")
