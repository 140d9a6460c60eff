"""The recipes of conversations at toy size: a policy learns to say them, plays them, and is trained on whole
episodes."""

from __future__ import annotations

from pathlib import Path

from paw_hpc import loop
from paw_hpc.recipe import load_recipe
from paw_hpc.recipe.shipped import recipe_path
from paw_hpc.run.metrics import read_metrics
from paw_hpc.study import warmstart
from paw_hpc.study.sweep import load_sweep

EXPERT = [
    "threads=1",
    "env.workers=1",
    "warm_start.games=3",
    "warm_start.hints=[1.0]",
    "warm_start.steps=4",
    "warm_start.batch_tokens=1024",
]
FEW = [
    "threads=1",
    "env.workers=1",
    "env.max_steps=4",
    "updates=1",
    "rollout.groups=2",
    "rollout.group_size=2",
    "optimizer.mini_batch=8",
]


def test_from_the_expert_to_a_trained_policy(tmp_path: Path) -> None:
    start = warmstart.main(recipe_path(Path("warm-start-conversation-expert")), EXPERT, tmp_path / "expert")
    habit = [*EXPERT, f"model.path={start}"]
    start = warmstart.main(recipe_path(Path("warm-start-conversation")), habit, tmp_path / "start")
    recipe = load_recipe(recipe_path(Path("quickstart-conversation")), [*FEW, f"model.path={start}"])
    loop.train(recipe, tmp_path / "run", command="test")
    [line] = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert line["train/episodes"] == line["train/sequences"] == 4 < line["train/transitions"], (
        "an episode is one sequence"
    )
    assert line["wm/selected_transitions"] > 0 and line["policy/skipped_steps"] == 0
    assert line["rollout/truncated_prompts"] == 0 and line["rollout/kept_tokens"] > 0


def test_the_study_sets_a_window_beside_the_conversation() -> None:
    sweep = load_sweep(recipe_path(Path("miniature/conversation")))
    recipes = {one.name: load_recipe(one.base, one.changes) for one in sweep.variants}
    shown = {
        name: (recipe.env.prompt, recipe.env.history, recipe.wm.enabled) for name, recipe in recipes.items()
    }
    window, talk = ("compact", 2), ("compact-conversation", "all")
    assert shown == {
        "window-vanilla": (*window, False),
        "window-paw": (*window, True),
        "conversation-vanilla": (*talk, False),
        "conversation-paw": (*talk, True),
    }
    assert len(sweep.seeds) == 5
    of_the_prompt = {"name": "", "env": None, "model": None, "wm": None, "rollout": None}
    assert len({repr(recipe.model_copy(update=of_the_prompt)) for recipe in recipes.values()}) == 1, (
        "nothing else differs"
    )
