"""What may be different when a run goes on: a verdict on every key of a recipe.

    free       it does not change what an update computes (but in which order numbers are added)
    by name    it does, and is let through when asked for (`--change KEY`), which is recorded
    checksum   where the same model stands: the weights that the run began with are compared with those there
    never      it would be another run, or the checkpoint could not be read

docs/resuming.md has the table of all keys, which a test compares with the models: a new key must be put into
one of these lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paw_hpc.recipe.experiment import Recipe

Verdict = Literal["free", "by name", "checksum", "never"]

_VERDICTS: Mapping[Verdict, tuple[str, ...]] = {
    "free": (
        "protocol",
        "plugins",  # what they bring is named by other keys
        "updates",  # unless a schedule runs over them: see `_is_schedule`
        "tracking",
        "threads",
        "env.workers",
        "env.step_timeout_s",
        "env.search.url",
        "env.search.key_file",
        "env.search.timeout_s",
        "env.search.max_batch",
        "model.device",
        "model.gradient_checkpointing",
        "model.head_chunk_rows",
        "rollout.fleet",
        "rollout.publish",
        "rollout.max_logprob_gap",
        "rollout.batching",
        "rollout.max_batch",
        "optimizer.max_tokens_per_micro_batch",
        "policy.share_prefixes",
        "megatron",
        "eval",
        "checkpoint",
        "episodes",
        "warm_start",
        "cluster",
    ),
    "by name": (
        "env.options",
        "env.task_types",
        "env.train_games",
        "env.max_steps",
        "env.history",
        "env.success_reward",
        "env.invalid_penalty",
        "env.validity",
        "env.search.train_sets",
        "env.search.retriever",
        "env.search.index",
        "env.search.topk",
        "env.search.passage_words",
        "rollout.engine",
        "rollout.options",
        "rollout.staleness",
        "rollout.groups",
        "rollout.group_size",
        "rollout.temperature",
        "rollout.max_prompt_tokens",
        "rollout.max_response_tokens",
        "rollout.stop",
        "algorithm.options",
        "algorithm.normalize_std",
        "algorithm.penalty",
        "algorithm.statistics",
        "algorithm.gigpo_omega",
        "algorithm.gigpo_similarity",
        "algorithm.gigpo_anchor",
        "algorithm.ppo_advantages",
        "algorithm.token_gamma",
        "algorithm.token_lambda",
        "algorithm.gamma",
        "algorithm.gae_lambda",
        "algorithm.clip_low",
        "algorithm.clip_high",
        "algorithm.dual_clip",
        "algorithm.kl_coefficient",
        "algorithm.kl_estimator",
        "algorithm.entropy_bonus",
        "algorithm.aggregation",
        "algorithm.truncated_importance",
        "algorithm.old_logp",
        "algorithm.value_clip",
        "algorithm.value_coefficient",
        "wm.enabled",
        "wm.loss",
        "wm.options",
        "wm.rho",
        "wm.selection",
        "wm.alpha",
        "wm.entropy",
        "wm.coefficient",
        "wm.scale",
        "wm.final_scale",
        "wm.target",
        "wm.every",
        "wm.aggregation",
        "wm.max_observation_tokens",
        "optimizer.lr",
        "optimizer.critic_lr",
        "optimizer.betas",
        "optimizer.eps",
        "optimizer.weight_decay",
        "optimizer.warmup_updates",
        "optimizer.warmup_share",
        "optimizer.clip_grad",
        "optimizer.epochs",
        "optimizer.mini_batch",
        "policy.merge_turns",
        "policy.skip_zero_gradient",
    ),
    "checksum": ("model.path",),
    "never": (
        "name",
        "seed",
        "env.name",
        "env.games",
        "env.webshop",
        "env.search.data",
        "env.prompt",
        "env.prompt_template",
        "model.tiny",
        "model.tokenizer",
        "model.dtype",
        "algorithm.name",
        "policy",
        "megatron.distributed_optimizer",  # it decides how a checkpoint holds the optimizer
    ),
}
"""Keys, or sections for all of their keys; the longest that fits a key decides."""
_OF: dict[str, Verdict] = {name: verdict for verdict, names in _VERDICTS.items() for name in names}


@dataclass(frozen=True, slots=True)
class Difference:
    """A key in which two recipes differ."""

    key: str
    old: Any
    """JSON values; UNSET where the other one has a section that this one lacks."""
    new: Any
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


UNSET = "(unset)"


def known_verdict(key: str) -> Verdict | None:
    """What the lists say of a dotted key; None: nothing."""
    parts = key.split(".")
    return next(
        (_OF[name] for name in (".".join(parts[:n]) for n in range(len(parts), 0, -1)) if name in _OF), None
    )


def differences(old: Recipe, new: Recipe) -> list[Difference]:
    """Every key in which two recipes differ, by name, with its verdict; `never` where nobody has thought
    about a key."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    found = []
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key, UNSET), after.get(key, UNSET)
        if one != other:
            scheduled = key == "updates" and (_is_schedule(before) or _is_schedule(after))
            found.append(
                Difference(key, one, other, "by name" if scheduled else known_verdict(key) or "never")
            )
    return found


def differing_keys(old: Recipe, new: Recipe) -> list[str]:
    """`key: old -> new` for each recipe key that differs and matters to what an update computes. Empty: the
    runs continue each other."""
    return [str(found) for found in differences(old, new) if found.verdict != "free"]


def _is_schedule(flat: Mapping[str, Any]) -> bool:
    """Whether something runs over the whole run, so that its length changes what an update computes."""
    return flat["wm.final_scale"] is not None or bool(flat.get("optimizer.warmup_share"))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        # which are one key: what is in them, a plugin alone knows
        section = isinstance(value, Mapping) and key != "options"
        out |= _flat(value, f"{prefix}{key}.") if section else {prefix + key: value}
    return out
