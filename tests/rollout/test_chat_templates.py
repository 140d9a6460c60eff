"""Chat templates of models that think: what they make of a prompt and a transition, how answers to them are
read, and what is said of faulty ones."""

from __future__ import annotations

import asyncio
import datetime
import logging
import string

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.chat_template import FIXED_DATE
from paw_hpc.rollout.collector import Collector, PlaySettings
from paw_hpc.rollout.engines.base import Completion, GenerationRequest
from paw_hpc.system.errors import DataError
from tests.rollout.chat_templates import CLOCK, NO_SYSTEM, OPENS, STRIPS, TEMPLATES, thinker
from tests.rollout.desks import World
from tests.rollout.test_chat import CHATML

ASKED, SEEN = "Where is the mug?", "You see a mug 2."
SAID = "it may be here.</think>\n<action>look</action>"
EACH = pytest.mark.parametrize("name", TEMPLATES)


def chat(name: str) -> ChatFormat:
    return ChatFormat(thinker(TEMPLATES[name]))


def text(tokenizer: PreTrainedTokenizerBase, *parts: np.ndarray) -> str:
    return str(tokenizer.decode(np.concatenate(parts).tolist()))


@EACH
def test_the_prompt_is_the_template_s(name: str) -> None:
    tokenizer = thinker(TEMPLATES[name])
    before = (
        "<|im_start|>system\nIt is Friday, 26 July 2024, 00:00:00 (26 Jul 2024; 2024-07-26).<|im_end|>\n"
        if name == "clock"
        else ""
    )
    after = "<think>\n" if name == "opens" else ""
    prompt = ChatFormat(tokenizer).prompt([{"role": "user", "content": ASKED}])
    assert (
        text(tokenizer, prompt) == f"{before}<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>model\n{after}"
    )


@EACH
def test_only_a_prompt_that_ends_in_an_opened_thought_opens_one(name: str) -> None:
    assert chat(name).opens_thought is (name == "opens")


@pytest.mark.parametrize(
    ("ending", "opens"),
    [
        ("<think>", True),
        ("<think> \n\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("<think>\nFirst,", False),
        ("think>", False),
    ],
)
def test_a_thought_is_opened_by_the_very_end_of_the_prompt(ending: str, opens: bool) -> None:
    """A template that opens and closes it (thinking switched off) leaves the thought to the response."""
    assert ChatFormat(thinker(OPENS.replace("<think>\n", ending))).opens_thought is opens
    assert not ChatFormat(thinker(CHATML.replace("You are", "<think>"))).opens_thought


@EACH
@pytest.mark.parametrize("finished", [True, False])
def test_a_transition_is_the_prompt_the_whole_response_and_the_next_user_s_turn(
    name: str, finished: bool
) -> None:
    """The thought stays in its place, whatever the template makes of the thoughts of earlier turns."""
    tokenizer = thinker(TEMPLATES[name])
    chat = ChatFormat(tokenizer)
    prompt, response = chat.prompt([{"role": "user", "content": ASKED}]), chat.answer(f"<think>{SAID}")
    response = response if finished else response[:-1]
    assert chat.ends_turn(response) is finished
    observation, _ = chat.observation(SEEN, 100)
    whole = text(tokenizer, prompt, response, chat.bridge(chat.ends_turn(response)), observation)
    thought = SAID if name == "opens" else f"<think>{SAID}"
    assert whole == f"{text(tokenizer, prompt)}{thought}<|im_end|>\n<|im_start|>user\n{SEEN}"


@EACH
def test_an_answer_that_is_cloned_is_read_back_as_it_was_meant(name: str) -> None:
    """With and without a thought of its own; in an opened thought it has one opening tag with the prompt's,
    and one closing tag."""
    tokenizer = thinker(TEMPLATES[name])
    chat = ChatFormat(tokenizer)
    prompt = chat.prompt([{"role": "user", "content": ASKED}])
    for answer in (f"<think>{SAID}", f"\n <think>{SAID}", "look"):
        said = text(tokenizer, prompt, chat.answer(answer)).split("<|im_start|>model\n")[1]
        thinks = name == "opens" or "<think>" in answer
        assert (said.count("<think>"), said.count("</think>")) == (thinks, thinks) and said.endswith(
            f"{answer[-6:].strip()}<|im_end|>"
        )
        view = World(style="paper" if "<think>" in answer else "compact").view(World().tasks("train")[0], 0)
        view.start(asyncio.run(asyncio.run(World().open(World().tasks("train")[0], 1))[0].reset()))
        assert view.parse(chat.decode(chat.answer(answer)), chat.opens_thought) == ("look", True)


@pytest.mark.parametrize("template", [OPENS, STRIPS])
def test_tags_that_are_special_tokens_are_a_part_of_what_is_said(template: str) -> None:
    tokenizer = thinker(template, special_tags=True)
    chat = ChatFormat(tokenizer)
    response = chat.answer(f"<think>{SAID}")
    assert "</think>" not in tokenizer.decode(response.tolist(), skip_special_tokens=True)
    assert chat.decode(response) == (SAID if template == OPENS else f"<think>{SAID}")
    assert chat.decode(chat.bridge(False)) == "\nuser\n", "the special tokens of turns are not"
    assert chat.decode(np.concatenate([response, chat.bridge(True)])).endswith("</action>\nuser\n")


class TestPlay:
    """Through the real collector: a scripted model answers what a thinking model would."""

    class Says:
        def __init__(self, response: np.ndarray):
            self._ids = response

        def join(self, episode: int) -> None: ...

        def leave(self, episode: int) -> None: ...

        async def generate(self, request: GenerationRequest) -> Completion:
            return Completion(
                self._ids, np.zeros(len(self._ids), np.float32), None, weight_version=0, finished=True
            )

    def valid(self, chat: ChatFormat, response: str, style: str = "paper") -> set[bool]:
        world = World(style=style, max_steps=2)
        ids = chat._encode(response + "<|im_end|>")
        collector = Collector(world, self.Says(ids), chat, PlaySettings(7, "train", 1.0, 4000, 60, 64))
        groups, _ = asyncio.run(collector.collect(world.tasks("train")[:1], 2, 0))
        played = [t for g in groups for e in g.episodes for t in e.transitions]
        assert len(played) == 4 and all(t.response_ids.tolist() == ids.tolist() for t in played)
        # The action was carried out in any case: the desk answers "Nothing happens." to what it does not
        # know.
        assert all("Nothing" not in chat.decode(t.observation_ids) for t in played)
        return {t.valid for t in played}

    @EACH
    def test_the_closing_tag_alone_is_enough_where_the_prompt_has_opened_the_thought(self, name: str) -> None:
        assert self.valid(chat(name), SAID) == {name == "opens"}
        assert self.valid(chat(name), f"<think>{SAID}") == {True}
        assert self.valid(chat(name), "<action>look</action>") == {False}

    @EACH
    def test_what_follows_the_thought_answers_the_compact_prompt(self, name: str) -> None:
        assert self.valid(chat(name), "look", style="compact") == {name != "opens"}
        if name == "opens":
            assert self.valid(chat(name), "here or there?\n</think>\n\nlook", style="compact") == {True}


class TestTheClock:
    @pytest.fixture
    def at(self, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
        return monkeypatch

    def move(self, at: pytest.MonkeyPatch, moment: datetime.datetime) -> None:
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
                return moment

        at.setattr(chat_template_utils, "datetime", Clock)

    def test_moved_changes_no_prompt(self, at: pytest.MonkeyPatch) -> None:
        messages = [{"role": "user", "content": ASKED}]
        tokenizer = thinker(CLOCK)
        seen, unasked = [], []
        for year in (2024, 2031):
            self.move(at, datetime.datetime(year, 5, 3, 14, 7, 9))
            seen.append(ChatFormat(tokenizer).prompt(messages).tolist())
            unasked.append(str(tokenizer.apply_chat_template(messages, tokenize=False)))
        assert seen[0] == seen[1]
        assert "2024" in unasked[0] and "2031" in unasked[1], (
            "the library's own answer follows the clock that was moved"
        )

    def test_stands_at_a_date_as_the_library_would_write_it(self, at: pytest.MonkeyPatch) -> None:
        """All directives, and the whole template to the last blank."""
        self.move(at, FIXED_DATE)
        known = [
            c
            for c in string.ascii_letters
            if c not in "sEO" and FIXED_DATE.strftime(f"%{c}") not in (f"%{c}", "")
        ]
        directives = [f"%{c}" for c in known] + ["%-d", "%%", "%d%%"]
        assert len(directives) > 30
        asked = "".join("{{ strftime_now('" + d + "') }}|" for d in directives)
        for template in (
            CLOCK,
            f"  {{% if true %}}\n{asked}{{% endif %}}{OPENS}",
            f"\n\n {asked}{STRIPS}",
            f"{{# #}}\n{asked}{NO_SYSTEM}",
        ):
            tokenizer = thinker(template)
            own = str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": ASKED}], tokenize=False, add_generation_prompt=True
                )
            )
            assert text(tokenizer, ChatFormat(tokenizer).prompt([{"role": "user", "content": ASKED}])) == own

    def test_is_given_as_llama_3_s_date_string(self) -> None:
        dated = (
            "{%- if not date_string is defined %}{%- set date_string = 'none' %}{%- endif %}{{ date_string }}"
        )
        assert "26 Jul 2024" in text(
            thinker(""), ChatFormat(thinker(dated + NO_SYSTEM)).prompt([{"role": "user", "content": ASKED}])
        )


class TestFaultyTemplates:
    @pytest.mark.parametrize(
        ("template", "said"),
        [
            ("{% for m in messages %}\n{{ m.content }", r"\(line 2\): TemplateSyntaxError: "),
            ("{{ strftime_now('%d') }}\n\n{% if %}", r"\(line 3\): TemplateSyntaxError: "),
            (
                "{% for m in messages %}\n{{ m.nothing.at_all }}{% endfor %}",
                r"\(line 2\): UndefinedError: .*'nothing'",
            ),
            ("{{ strftime_now('%d') }}\n{{ messages[0].content + 1 }}", r"\(line 2\): TypeError: "),
            ("{{ raise_exception('only for\ntools') }}", r"\(line 1\): TemplateError: only for tools"),
            ("{{ 1 // 0 }}", r"\(line 1\): ZeroDivisionError"),
            ("{{ messages | no_such_filter }}", r"\(line 1\): TemplateAssertionError: .*no_such_filter"),
            ("{{ messages.append(1) }}", r"\(line 1\): SecurityError: "),
        ],
    )
    def test_get_one_line_with_the_key_the_folder_and_the_template_s_line(
        self, template: str, said: str
    ) -> None:
        tokenizer = thinker(template)
        tokenizer.name_or_path = "models/x"
        start = r"model\.tokenizer: the chat template of the tokenizer in 'models/x' cannot be rendered "
        with pytest.raises(DataError, match=start + said) as caught:
            ChatFormat(tokenizer, "model.tokenizer")
        assert "\n" not in str(caught.value) and caught.value.__suppress_context__

    def test_are_refused_too_when_a_prompt_alone_shows_it(self) -> None:
        chat = ChatFormat(
            thinker("{{ messages[0].content[4:].missing.x if messages[0].content == 'odd' }}" + OPENS)
        )
        with pytest.raises(DataError, match=r"cannot be rendered \(line 1\): UndefinedError"):
            chat.prompt([{"role": "user", "content": "odd"}])

    def test_that_are_several_without_a_default(self) -> None:
        tokenizer = thinker("")
        tokenizer.chat_template = {"a": OPENS, "b": STRIPS}  # type: ignore[assignment]
        with pytest.raises(
            DataError, match=r"model\.path: the chat template of the tokenizer in '' cannot be chosen: "
        ):
            ChatFormat(tokenizer)
        tokenizer.chat_template = {"a": OPENS, "default": STRIPS}  # type: ignore[assignment]
        assert not ChatFormat(tokenizer).opens_thought

    def test_that_end_a_turn_otherwise_than_generation_ends(self) -> None:
        said = (
            r"model\.path: .* does not end a turn with the tokenizer's eos token '<\|im_end\|>': after an "
            r"answer comes '<\|end\|>\\n"
            r".*; set eos_token in the folder's tokenizer_config\.json"
        )
        with pytest.raises(DataError, match=said):
            ChatFormat(thinker(OPENS.replace("<|im_end|>", "<|end|>")))

    def test_a_system_turn_is_refused_by_a_template_without_that_role(self) -> None:
        chat = ChatFormat(thinker(NO_SYSTEM))
        with pytest.raises(DataError, match="TemplateError: System role not supported"):
            chat.prompt([{"role": "system", "content": "x"}, {"role": "user", "content": ASKED}])

    def test_a_vocabulary_that_cannot_close_the_thought_is_told_of(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        from tests.rollout.test_chat import word_level

        tokenizer = word_level()
        with caplog.at_level(logging.WARNING):
            for template in (STRIPS, OPENS):
                assert not caplog.records
                tokenizer.chat_template = template.replace("<|im_end|>", "<|end|>")
                ChatFormat(tokenizer)
            ChatFormat(thinker(OPENS))
        (record,) = caplog.records
        assert (
            "opens a thought, and it cannot spell </think>: every action will count as invalid"
            in record.message
        )
