"""Four chat templates as models that think have them, and a tokenizer of bytes that takes any of them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from paw_hpc.envs.alfworld.tokenizer import alfworld_texts
from paw_hpc.envs.templates import shipped_template
from paw_hpc.envs.webshop import teacher


def _template(answer: str, *, before: str = "", opening: str = "") -> str:
    """ChatML whose assistant is a `model`; `answer`: the expression that writes an answer `m`, `opening`:
    what its turn begins with."""
    return (
        before
        + "{%- for m in messages -%}"
        + "{%- if m.role == 'assistant' -%}{{ '<|im_start|>model\n' + "
        + answer
        + " }}{%- else -%}{{ '<|im_start|>' + m.role + '\n' + m.content | trim }}{%- endif -%}{{ "
        "'<|im_end|>\n' }}"
        + "{%- endfor -%}"
        + "{%- if add_generation_prompt -%}{{ '<|im_start|>model\n"
        + opening
        + "' }}{%- endif -%}"
    )


OPENS = _template("m.content.split('</think>')[-1].lstrip('\n')", opening="<think>\n")
"""Begins the answer inside of a thought, and leaves earlier thoughts out (as QwQ's and DeepSeek-R1's do)."""
STRIPS = _template("m.content.split('</think>')[1].lstrip('\n')")
"""Leaves earlier thoughts out, and counts on there being one."""
CLOCK = _template(
    "m.content",
    before=(
        "{%- macro today() -%}{{ strftime_now('%A, %d %B %Y, %H:%M:%S') }}{%- endmacro -%}\n"
        "{%- if strftime_now is defined -%}{%- set date = strftime_now('%d %b %Y') -%}{%- else -%}{%- set "
        "date = 'unknown' -%}{%- endif -%}\n"
        "   {% if true %}<|im_start|>system\nIt is {{ today() }} ({{ date }}; {{ strftime_now('%Y-%m-%d') "
        "}}).<|im_end|>{{ '\n' }}{% endif %}\n"
    ),
)
"""Writes date and time of now into a system turn."""
NO_SYSTEM = _template(
    "m.content | trim",
    before=(
        "{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- "
        "endif -%}"
        "{%- for m in messages -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- "
        "endif -%}{%- endfor -%}"
    ),
)
"""Knows users and itself alone (as Gemma's)."""
TAGS = ("<think>", "</think>", "<action>", "</action>")
TEMPLATES = {"opens": OPENS, "strips": STRIPS, "clock": CLOCK, "no_system": NO_SYSTEM}


def thinker(template: str, *, special_tags: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level pairs, the tags as tokens of their own.

    Args:
        special_tags: these are special tokens, as in some folders.
    """
    shown = shipped_template("alfworld").render(
        task="put some mug on desk.",
        step=1,
        steps_taken=0,
        max_steps=9,
        history=[],
        observation="look",
        opening="",
        actions=["go to desk 1"],
    )
    made = teacher.build_tokenizer([*alfworld_texts(), *[shown] * 20], 700)
    made.add_tokens([AddedToken(tag, special=special_tags, normalized=False) for tag in TAGS])
    made.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    made.chat_template = template
    return made


def save(template: str, folder: Path) -> Path:
    thinker(template).save_pretrained(folder)
    return folder
