"""Under which names a run's metrics tell of a plan and of an update."""

from __future__ import annotations

_PLAN_NAMES = {
    "return_mean": "train/return",
    "steps_mean": "train/steps",
    "invalid_share": "train/invalid",
    "response_length_mean": "train/response_tokens",
    "prompt_length_mean": "train/prompt_tokens",
    "observation_length_mean": "train/observation_tokens",
    "lambda_mean": "train/lambda",
    "entropy_threshold": "wm/entropy_threshold",
    "selected_transitions": "wm/selected_transitions",
}


_WORLD_MODEL = {
    "wm_loss": "wm/loss",
    "observation_ce": "wm/observation_ce",
    "clipped_token_ratio": "wm/clipped_token_ratio",
    "observation_p": "wm/observation_p",
}


def public_names(planned: dict[str, float], trained: dict[str, float]) -> dict[str, float]:
    """Plan and policy metrics under the names that run/metrics.py documents."""
    names = {
        name: _PLAN_NAMES.get(name, f"wm/{name[3:]}" if name.startswith("wm_") else f"train/{name}")
        for name in planned
    }
    named = {k: k if "/" in k else _WORLD_MODEL.get(k, f"policy/{k}") for k in trained}
    return {names[k]: v for k, v in planned.items()} | {named[k]: v for k, v in trained.items()}
