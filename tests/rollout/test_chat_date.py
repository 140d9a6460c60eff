"""A template that asks for today's date gets the same one every day: prompts are a function of the run."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from paw_hpc.policy.loading import load_tokenizer
from paw_hpc.recipe import ModelSection
from paw_hpc.rollout.chat import ChatFormat

# What Llama 3.2's template does with dates.
DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "<|im_start|>system\nToday Date: {{ date_string }}{{ eos_token }}"
    "{%- for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_prompts_do_not_depend_on_the_day() -> None:
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(ModelSection(path="warm-start"))
    tokenizer.chat_template = DATED
    seen: list[str] = []
    render = tokenizer.apply_chat_template

    def listened(*arguments: object, **options: object) -> object:
        seen.append(str(render(*arguments, **options)))  # type: ignore[arg-type]
        return seen[-1]

    tokenizer.apply_chat_template = listened  # type: ignore[method-assign, assignment]
    ChatFormat(tokenizer).prompt([{"role": "user", "content": "look"}])
    assert len(seen) == 2 and all("Today Date: 26 Jul 2024<|end|>" in text for text in seen)
    assert "26 Jul 2024" not in str(render([{"role": "user", "content": "look"}], tokenize=False))  # unasked, it is today's
