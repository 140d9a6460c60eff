"""The model's own chat template, rendered so that a run's prompts are a function of the run, with one clear
line where it cannot be."""

from __future__ import annotations

import datetime
from types import TracebackType

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from paw_hpc.envs.base import Message
from paw_hpc.system.errors import DataError
from paw_hpc.system.text import well_formed

FIXED_DATE = datetime.datetime(2024, 7, 26)
"""What a template is told when it asks for the date or the time (midnight): a run must not change overnight.
It is the date that Llama 3's template takes where it is given none."""
_DATE_STRING = FIXED_DATE.strftime("%d %b %Y")
_DIRECTIVES = (
    "-d",
    "-m",
    "-H",
    "-I",
    "-j",
    "-M",
    "-S",
    "-y",
    *"aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZf",
    "%",
)
"""Those of strftime, but for `%s`, which depends on the machine's time zone."""
_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(
        f" | replace({'%' + directive!r}, {FIXED_DATE.strftime('%' + directive)!r})"
        for directive in _DIRECTIVES
    )
    + " }}{%- endmacro %}\n"
)
"""`transformers` gives templates a `strftime_now` that reads the clock, and no way to give another; a macro
of that name, on a line of its own before the template's first, takes its place."""


class ChatTemplate:
    """Conversation -> text.

    Args:
        tokenizer: its template; where it has several, the default one.
        key: the recipe key that named the tokenizer, for errors.

    Raises:
        DataError: there is no template. `render` raises it where the template has an error.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, key: str):
        self._tokenizer, self._key = tokenizer, key
        self._source: str | None = None
        if not tokenizer.chat_template:
            raise DataError(
                f"{key}: the tokenizer in {tokenizer.name_or_path!r} has no chat template; use an instruct "
                "model or add one"
            )
        try:
            source = str(tokenizer.get_chat_template())
        except ValueError as error:
            raise self.error(f"cannot be chosen: {_one_line(error)}") from None
        if "strftime_now" in source:
            self._source = _CLOCK + source

    def render(self, messages: list[Message], *, to_answer: bool) -> str:
        """The text of a conversation; `to_answer`: up to where the assistant begins to answer."""
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=to_answer,
                date_string=_DATE_STRING,
            )
        except Exception as error:  # a template may raise anything that Python's operators and methods do
            line = (
                error.lineno
                if isinstance(error, TemplateSyntaxError)
                else _template_line(error.__traceback__)
            )
            where = "" if line is None else f" (line {line - (self._source is not None)})"
            raise self.error(
                f"cannot be rendered{where}: {type(error).__name__}: {_one_line(error)}"
            ) from None
        return well_formed(str(text))  # a template can spell half a character itself

    def error(self, what: str) -> DataError:
        """One line that names the recipe key and the folder."""
        return DataError(
            f"{self._key}: the chat template of the tokenizer in {self._tokenizer.name_or_path!r} {what}"
        )


def _template_line(traceback: TracebackType | None) -> int | None:
    """The innermost line of a template in a traceback."""
    found = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            found = traceback.tb_lineno
        traceback = traceback.tb_next
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
