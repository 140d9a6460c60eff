"""GRPO of TRL against these environments: `python examples/trl/grpo.py [UPDATES] [MODEL]`, in an environment
with paw-hpc[train,alfworld] and trl>=1.

TRL's trainer asks `play` for episodes: one per completion. A completion is a whole episode: what the model
said, with the next prompts between, which `env_mask` leaves out of the loss. The model is the small policy
that ships with the package; its games ship with it, too. When it has trained, a part of a panel is played
once more, and the outcomes are written for `paw report`. openenv_grpo.py does the same against an OpenEnv
server.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import paw_hpc.policy
from paw_hpc.envs import Environments, Outcome, Panel, write_outcomes

SHIPPED = Path(paw_hpc.policy.__file__).parent / "shipped" / "warm_start"
TASK_TYPES = ["pick_and_place_simple", "look_at_obj_in_light"]
RULES = {"games": "generated", "task_types": TASK_TYPES, "prompt": "compact", "max_steps": 6}
NEW_TOKENS = 16


def rendered(tokenizer: Any, episode: Any) -> list[int]:
    text = tokenizer.apply_chat_template(episode.messages(), add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@torch.no_grad()
def spoken(model: Any, tokenizer: Any, context: list[int]) -> tuple[list[int], list[float]]:
    """What the model says to a context at temperature 1, with its log-probs."""
    said = model.generate(
        torch.tensor([context], device=model.device),
        max_new_tokens=NEW_TOKENS,
        do_sample=True,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = said.sequences[0, len(context) :]
    logps = torch.cat(said.logits).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    return ids.tolist(), logps.tolist()


def played(model: Any, tokenizer: Any, episode: Any) -> dict[str, list[Any]]:
    """One episode as TRL wants it: tokens from the first prompt on, and which of them are the model's."""
    prompt = rendered(tokenizer, episode)
    ids, mask, logps = list[int](), list[int](), list[float]()
    while True:
        said, logp = spoken(model, tokenizer, prompt + ids)
        ids, mask, logps = ids + said, mask + [1] * len(said), logps + logp
        episode.respond(tokenizer.decode(said, skip_special_tokens=True))
        if episode.done:
            return {"prompt_ids": prompt, "completion_ids": ids, "logprobs": logps, "env_mask": mask}
        between = rendered(tokenizer, episode)
        ids, mask, logps = ids + between, mask + [0] * len(between), logps + [0.0] * len(between)


def trained(
    folder: str, updates: int, prompts: list[str], begin: Callable[[str, int], Any]
) -> tuple[Any, Any]:
    """Model and tokenizer after so many updates.

    Args:
        prompts: what TRL repeats, one for each task, and hands back for every completion that it wants.
        begin: an episode of a prompt, and which of its episodes, from 0.
    """
    # Not in half precision, as it is stored: where a gradient is zero, Adam would divide nothing by nothing.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data, repeats = Dataset.from_dict({"prompt": prompts}), dict.fromkeys(prompts, 0)

    def play(wanted: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for prompt in wanted:  # each stands there once per completion that is wanted
            episode = begin(prompt, repeats[prompt])
            repeats[prompt] += 1
            shown: dict[str, Any] = played(trainer.model, tokenizer, episode)
            shown |= {"score": episode.score, "invalid": episode.invalid / episode.steps}
            for name, value in shown.items():
                found.setdefault(name, []).append(value)
            episode.close()
        return found

    def reward(completions: list[Any], score: list[float], invalid: list[float], **_: Any) -> list[float]:
        return [10 * won - share for won, share in zip(score, invalid, strict=True)]

    config = GRPOConfig(
        output_dir="trl-out",
        per_device_train_batch_size=8,
        num_generations=4,
        max_steps=updates,
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = GRPOTrainer(model, reward, config, data, processing_class=tokenizer, rollout_func=play)
    trainer.train()
    return trainer.model, tokenizer


def judged(path: str, outcomes: list[Outcome], panel: Panel, player: str, updates: int) -> None:
    """Written for `paw report`."""
    rules = f"generated games, {RULES['max_steps']} steps, the whole episode as context"
    write_outcomes(
        path,
        outcomes,
        player=player,
        benchmark="alfworld",
        panel=panel,
        update=updates,
        temperature=1.0,
        rules=rules,
    )


def main(updates: int, folder: str) -> None:
    with Environments("alfworld", **RULES) as environments:
        tasks = {task.task_id: task for task in environments.tasks("train")}

        def begin(task_id: str, repeat: int) -> Any:
            return environments.open(tasks[task_id], repeat=repeat)

        model, tokenizer = trained(folder, updates, list(tasks)[:64], begin)
        panel = environments.panel("valid_seen:8@0")
        outcomes = []
        for task in panel.tasks:
            episode = environments.open(task)
            played(model, tokenizer, episode)
            outcomes.append(episode.outcome())
        judged("trl.jsonl", outcomes, panel, "TRL", updates)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2] if len(sys.argv) > 2 else str(SHIPPED))
