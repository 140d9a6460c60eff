"""Chat templates, prompts and what environments say, on their way to a tokenizer."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import strategies as st

from paw_hpc.envs import base
from paw_hpc.envs.base import EnvironmentState
from paw_hpc.envs.search.corpus import Passage
from paw_hpc.envs.search.protocol import passages_text
from paw_hpc.envs.templates import PromptTemplate, variables_of
from paw_hpc.recipe.doors import BENCHMARKS
from paw_hpc.rollout import chat_template
from paw_hpc.rollout.chat import ChatFormat
from tests.fuzz.harness import Target, broken_on, judged
from tests.fuzz.inputs import texts
from tests.fuzz.test_answers import _view
from tests.rollout.chat_templates import TEMPLATES, thinker
from tests.rollout.desks import CHAT

PRIVATE = "".join(map(chr, range(0xE000, 0xF900)))
SECONDS = 6.0
"""An observation of 60,000 characters that is all one token is tokenized four times in it."""


@functools.cache
def _tokenizer() -> Any:
    return thinker(TEMPLATES["opens"])


@functools.cache
def _chats() -> tuple[ChatFormat, ChatFormat]:
    _tokenizer().chat_template = TEMPLATES["opens"]
    return CHAT, ChatFormat(_tokenizer())


SAID = st.tuples(
    st.sampled_from(("alfworld", "webshop", "search")),
    st.sampled_from(("paper", "compact")),
    texts(halves=True, longest=6000),
    texts(halves=True, longest=3000),
) | st.just(("search", "paper", f"<|im_end|>{PRIVATE}", "x"))


def _said(found: tuple[str, str, str, str]) -> None:
    benchmark, style, observation, action = found
    view = _view(benchmark, style, "admissible")

    def told() -> None:
        view.start(EnvironmentState(observation, (action, "look")))
        view.observe(
            action.encode(errors="replace").decode(),
            EnvironmentState(passages_text([Passage("1", observation)]), ("look",)),
        )
        for chat in _chats():
            chat.prompt(view.messages())
            ids, _ = chat.observation(EnvironmentState(observation, ()).observation, 64)
            assert len(ids) <= 64
            chat.offsets(EnvironmentState(observation, ()).observation, ids)

    judged(told, seconds=SECONDS)


JINJA = (
    "{% for message in messages %}", "{% endfor %}", "{% if add_generation_prompt %}", "{% endif %}", "{% else %}", "{{ message['content'] }}",
    "{{ message.role }}", "{{ messages[0].content }}", "{{ messages[9].content }}", "<|im_start|>", "<|im_end|>\n", "<think>\n", "</think>",
    "assistant\n",
    "{{ 1 / 0 }}", "{{ 'x' * 1000 }}", "{{ '\\ud83d' }}", "\ud83d", "{{ message.content[::-1] }}", "{{ message.content | upper }}",
    "{{ nothing.at.all }}",
    "{{ raise_exception('no') }}", "{{ strftime_now('%Y') }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ "
                                                               "a() }}", "{{ ''.__class__ }}",
    "{{ range(10**9) }}",
    "{% set x = messages %}", "{{ x.append(1) }}", "{{ messages | tojson }}", "{{ '%999999d' % 1 }}", "{% raw %}", "{% endraw %}", "{#", "#}", "{{",
    "}}", "{%",
    "{{ task }}", "{{ history }}", "{{ actions | join(', ') }}", "{{ observation | quoted }}", "{{ (" + "(" * 300 + "1" + ")" * 300 + ") }}", "\0",
    "{{ task.x.y }}",
    "{% for a in history %}{{ a.step }}{% endfor %}", "{% include 'x' %}", "{% extends task %}", "{% import 'x' as y %}", "{{ 9 ** 9 }}",
    "{{ max_steps % 0 }}", "a b",
)  # fmt: skip
CHATML = (
    JINJA[0] + "<|im_start|>{{ message['role'] }}\n",
    "{{ message['content'] }}<|im_end|>\n",
    JINJA[1] + JINJA[2] + "<|im_start|>assistant\n",
    JINJA[3],
)
SOURCES = st.tuples(
    *(texts(JINJA, longest=200).map(lambda text: text if len(text) % 3 == 0 else "") for _ in range(4))
).map(lambda parts: "".join(kept + part for kept, part in zip(CHATML, parts, strict=True)))


def _templated(source: str) -> None:
    _tokenizer().chat_template = source
    chat = judged(ChatFormat, _tokenizer())
    if isinstance(chat, ChatFormat):
        judged(chat.prompt, [{"role": "user", "content": "put <|im_end|> \ue000 on desk"}])
        chat.bridge(True), chat.bridge(False), chat.answer("look")


def _worded(found: tuple[Any, str]) -> None:
    template = judged(PromptTemplate, found[1], "mine.j2", found[0])
    if isinstance(template, PromptTemplate):
        judged(
            lambda: template.render(
                **{name: [] if name in ("history", "actions") else "x" for name in variables_of(found[0])}
            )
        )


WORDED = st.tuples(st.sampled_from(BENCHMARKS.names()), texts(JINJA, longest=200))


def _first_unknown(self: PromptTemplate, tree: Any, names: set[str]) -> None:
    if unknown := names - set(self._known):
        raise KeyError(unknown.pop())


def _loses_its_words(patch: pytest.MonkeyPatch) -> None:
    """An error of a template that has no text of its own."""
    patch.setattr(
        chat_template,
        "_one_line",
        broken_on(
            chat_template._one_line, lambda error: isinstance(error, ZeroDivisionError | RecursionError)
        ),
    )


TARGETS = [
    Target("observation", SAID, _said, lambda patch: patch.setattr(base, "well_formed", str), TypeError),
    Target("chat template", SOURCES, _templated, _loses_its_words),
    Target(
        "prompt template",
        WORDED,
        _worded,
        lambda patch: patch.setattr(PromptTemplate, "_refuse_unknown", _first_unknown),
    ),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_text_is_tokenized_or_refused_in_one_line(target: Target) -> None:
    target.holds()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_planted_fault_is_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.finds_the_planted_fault(monkeypatch)
