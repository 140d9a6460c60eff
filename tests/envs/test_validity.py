"""The two rules of `env.validity` on the same responses, and what becomes of odd actions in play."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.envs.alfworld.engine import GameEngine
from paw_hpc.envs.answers import has_chinese
from paw_hpc.envs.search.batching import SearchDesk
from paw_hpc.envs.search.benchmark import SearchSession
from paw_hpc.envs.search.corpus import Passage
from paw_hpc.envs.search.protocol import INVALID, NO_RESULTS
from paw_hpc.envs.search.questions import Question
from paw_hpc.envs.search.retriever import Hit
from paw_hpc.recipe import EnvSection
from tests.beside import SHARED, beside
from tests.envs.reference_validity import main, view

LONG = "a b " * 20_000
NEXT_STEP = "the end is thirty characters.."
assert len(NEXT_STEP) == 30

ROWS = [
    # response, by format: action, valid; by our rule: action (None: the end of the response, 60 characters),
    # valid
    ("<think>t</think><action>Go To Desk 1</action>", "go to desk 1", True, "go to desk 1", True),
    ("<think>t</think><action>go  to\tdesk 1</action>", "go  to\tdesk 1", True, "go to desk 1", True),
    ("<think>t</think><action>fly</action>", "fly", True, "fly", False),  # not admissible
    ("<think>t</think><action></action>", "", True, "", False),
    # several blocks
    ("<think>t</think><action>look</action><action>go to desk 1</action>", "look", True, None, False),
    ("<think>t</think></action>look<action>", "", True, None, False),  # reversed
    ("<think>t</think></action><action>look</action>", "", True, "look", True),
    # nested
    (
        "<think>t</think><action>a<action>look</action></action>",
        "a<action>look",
        True,
        "a<action>look",
        False,
    ),
    ("<think>t</think><action>look", "<think>t</think><action>look", False, None, False),
    ("<think>t</think>look</action>", "<think>t</think>look</action>", False, None, False),  # closing only
    ("<think>t</think><ACTION>look</Action>", "look", True, None, False),  # upper case
    ("<Think>t</Think><action>look</action>", "look", False, "look", False),
    ("<think>t<action>look</action>", "look", False, "look", False),  # opened thought
    ("t</think><action>look</action>", "look", False, "look", False),  # closed thought
    ("</think>t<think><action>look</action>", "look", True, "look", False),  # reversed thought
    ("<action>look</action><think>t</think>", "look", True, "look", True),
    ("<action>look</action>", "look", False, "look", False),  # no thought
    ("<think>t</think><action>look</action> and so on", "look", True, "look", True),  # text after the block
    # quoted in the thought
    (
        "<think>say <action>go to desk 1</action>?</think><action>look</action>",
        "go to desk 1",
        True,
        "look",
        True,
    ),
    (
        "<think>say <action> first</think><action>look</action>",
        "first</think><action>look",
        True,
        "look",
        True,
    ),
    ("<think>say </action></think><action>look</action>", "", True, "look", True),
    ("<think>only <action>look</action></think>", "look", True, None, False),
    ("<action>look <think>t</think></action>", "look <think>t</think>", True, "look <think>t</think>", False),
    ("<think>第一步</think><action>look</action>", "look", False, "look", True),  # other scripts
    ("<think>t</think><action>look</action> 完", "look", False, "look", True),
    ("<think>かな 한글 кто 。</think><action>look</action>", "look", True, "look", True),
    ("<think>\u3400\u4dff\ua000\U00020000</think><action>look</action>", "look", True, "look", True),
    ("<think>\u4e00</think><action>look</action>", "look", False, "look", True),
    ("<think>\u9fff</think><action>look</action>", "look", False, "look", True),
    ("<think>t</think><action>İX</action>", "i̇x", True, "i̇x", False),  # lowercasing makes it longer
    ("<think>İİİİ</think><action>look</action>", "look", True, "look", True),
    (
        "<think>t</think><act\u0131on>look</act\u0131on>",
        "<think>t</think><act\u0131on>look</act\u0131on>"[-30:],
        False,
        None,
        False,
    ),
    ("<think>t</think>< action>look</ action>", "t</think>< action>look</ action>"[-30:], False, None, False),
    ("", "", False, "", False),
    (" \n ", " \n ", False, "", False),
    ("x" + NEXT_STEP.upper(), NEXT_STEP, False, None, False),
    (f"<think>{LONG}</think><action>look</action>{LONG}", "look", True, "look", True),  # very long
    (f"<think>t</think><action>{LONG}</action>", LONG.strip(), True, LONG.strip(), False),
]

SEARCH_ROWS = [
    ("<think>t</think><search>q</search>", "<search>q</search>", True, "<search>q</search>", True),
    ("<think>t</think><answer> a  b\n</answer>", "<answer>a  b</answer>", True, "<answer>a b</answer>", True),
    ("<search>q</search>", "<search>q</search>", True, "<search>q</search>", False),  # no thought
    ("<think>t<search>q</search>", "<search>q</search>", True, "<search>q</search>", False),
    ("<think>t</think><Search>q</sEARCH>", "<search>q</search>", True, "", False),  # upper case
    ("<think>t</think><search></search>", "<search></search>", True, "", False),  # empty
    ("<think>t</think><answer> \n</answer>", "<answer></answer>", True, "", False),
    # several blocks
    ("<think>t</think><search>p</search><search>q</search>", "<search>p</search>", False, "", False),
    ("<think>t</think><answer>a</answer><search>q</search>", "<search>q</search>", False, "", False),
    ("<think>t</think><answer>a</answer><search>q", "<answer>a</answer>", False, "<answer>a</answer>", True),
    ("<think>t</think><search>q</search><ANSWER>", "<search>q</search>", False, "<search>q</search>", True),
    # cut at the first closing tag
    ("<think>t</think></search><search>q</search>", "", False, "<search>q</search>", True),
    # upper case does not cut
    ("<think>t</think></SEARCH><search>q</SEARCH>", "<search>q</search>", True, "", False),
    ("<think>t</think></answer><search>q</search>", "<search>q</search>", True, "<search>q</search>", True),
    ("<think>t</think></search><answer>a</answer>", "", False, "<answer>a</answer>", True),
    ("<think>t</think><search>q</answer>", "", False, "", False),
    ("<think>t</think></search>q<search>", "", False, "", False),  # reversed
    (
        "<think>t</think><search>q <answer>a</search>",
        "<search>q <answer>a</search>",
        False,
        "<search>q <answer>a</search>",
        True,
    ),
    (
        "<think>no <answer>b</answer></think><answer>a</answer>",
        "<answer>b</answer>",
        False,
        "<answer>a</answer>",
        True,
    ),
    ("<information><answer>b</answer></information>", "<answer>b</answer>", True, "", False),
    ("<think>第</think><search>什么</search>", "<search>什么</search>", True, "<search>什么</search>", True),
    ("<think>t</think><search>q</search> and so on", "<search>q</search>", True, "<search>q</search>", True),
    ("", "", False, "", False),
    (" \n", "", False, "", False),
    (
        f"<think>{LONG}</think><search>{LONG}</search>",
        f"<search>{LONG.strip()}</search>",
        True,
        f"<search>{LONG.strip()}</search>",
        True,
    ),
]


@pytest.mark.parametrize(("response", "action", "valid", "own_action", "own_valid"), ROWS)
def test_alfworld(response: str, action: str, valid: bool, own_action: str | None, own_valid: bool) -> None:
    assert view("alfworld").parse(response) == (action, valid)
    own = " ".join(response.lower().split())[-60:] if own_action is None else own_action
    assert view("alfworld", "admissible").parse(response) == (own, own_valid)


@pytest.mark.parametrize(("response", "action", "valid", "own_action", "own_valid"), ROWS)
def test_webshop_reads_as_alfworld_does_with_a_shorter_end(
    response: str, action: str, valid: bool, own_action: str | None, own_valid: bool
) -> None:
    has_block = "<action>" in response.lower() and "</action>" in response.lower()
    assert view("webshop").parse(response) == (action if has_block else action[-20:], valid)
    if own_valid:  # the same with an action of this shop
        for action_of_the_row in ("look", "Go To Desk 1", "go  to\tdesk 1"):
            response = response.replace(action_of_the_row, "click[Buy  Now]")
        assert view("webshop", "admissible").parse(response)[1]


@pytest.mark.parametrize(("response", "action", "valid", "own_action", "own_valid"), SEARCH_ROWS)
def test_search(response: str, action: str, valid: bool, own_action: str, own_valid: bool) -> None:
    assert view("search").parse(response) == (action, valid)
    assert view("search", "admissible").parse(response) == (own_action, own_valid)


class TestAnOpenedThought:
    """The chat template has written the opening tag: the response is read as if it stood before it."""

    @pytest.mark.parametrize("validity", ["format", "admissible"])
    @pytest.mark.parametrize("benchmark", ["alfworld", "webshop", "search"])
    def test_is_read_as_one_that_the_response_opens(self, benchmark: str, validity: str) -> None:
        known = "click[buy now]" if benchmark == "webshop" else "look"
        responses = [
            row[0].replace("look", known) for row in (SEARCH_ROWS if benchmark == "search" else ROWS)
        ]
        responses += [response.removeprefix("<think>") for response in responses]
        changed = 0
        for response in responses:
            read = view(benchmark, validity).parse(response, True)
            action, valid = view(benchmark, validity).parse(f"<think>{response}")
            assert read[1] == valid, response
            # Where none is found the action is the end of the response, to which the prompt's tag does not
            # belong.
            assert read[0] == action or (not valid and action.endswith(read[0])), response
            changed += read[1] != view(benchmark, validity).parse(response)[1]
        assert changed > 0 or (benchmark, validity) == ("search", "format"), (
            "to the reference's rule for search thoughts do not matter"
        )

    @pytest.mark.parametrize(
        ("response", "by_format", "own"),
        [
            ("t</think><action>look</action>", True, True),
            # our own rule wants the tags as they are in the prompt
            ("t</think>\n\n<ACTION> Look</Action>", True, False),
            ("t</THINK><action>look</action>", False, False),
            ("t<action>look</action>", False, False),  # never closed
            ("<action>look</action></think>", True, False),  # within the thought
            # quoted in it: by format, the action
            ("say <action>fly</action>?</think><action>look</action>", True, True),
            ("<think>t</think><action>look</action>", True, True),
            ("第</think><action>look</action>", False, True),
            ("t</think><action>fly</action>", True, False),
        ],
    )
    def test_of_alfworld(self, response: str, by_format: bool, own: bool) -> None:
        action = {0: "look", 1: "fly"}["fly" in response]
        read = view("alfworld").parse(response, True)
        assert read == (action, by_format)
        assert view("alfworld", "admissible").parse(response, True)[1] is own

    @pytest.mark.parametrize("response", ["", "look", "t</think>", "T</think>look"])
    def test_is_no_part_of_an_action_that_is_the_end_of_the_response(self, response: str) -> None:
        for benchmark in ("alfworld", "webshop"):
            for validity in ("format", "admissible"):
                action, valid = view(benchmark, validity).parse(response, True)
                assert action == response.lower() and not valid

    @pytest.mark.parametrize(
        ("benchmark", "command"),
        [("alfworld", "look"), ("webshop", "search lamp"), ("search", "answer Oslo")],
    )
    def test_stands_before_an_answer_to_the_compact_prompt(self, benchmark: str, command: str) -> None:
        for validity in ("format", "admissible"):
            read = view(benchmark, validity, "compact")
            action, valid = read.parse(command)
            assert valid and read.parse(f"where?\n</think>\n\n{command}", True) == (action, True)
            assert read.parse(command, True) == (action, False), (
                "a thought that is not closed is carried out, and is not valid"
            )
            assert not read.parse("where?</think>", True)[1]
        assert not view(benchmark, style="compact").parse(f"第</think>{command}", True)[1]


@pytest.mark.parametrize("benchmark", ["alfworld", "webshop", "search"])
def test_an_answer_to_the_compact_prompt_needs_to_be_written_and_not_in_chinese(benchmark: str) -> None:
    for response, valid in [
        ("look", True),
        ("search the shelf", True),
        ("nothing known", True),
        ("", False),
        (" \n", False),
        ("看 look", False),
    ]:
        action, own_valid = view(benchmark, "admissible", "compact").parse(response)
        assert view(benchmark, style="compact").parse(response) == (action, valid)
        assert valid or not own_valid


def test_which_characters_are_chinese() -> None:
    assert [c for c in range(0x3000, 0xB000) if has_chinese(chr(c))] == list(range(0x4E00, 0xA000))


ODD = [
    "",
    "   ",
    "look\n",
    "maybe</think>\n<action>look",
    "examine  desk 1",
    "é" * 2000,
    "[look]",
    "go to nowhere 99",
    "help me",
    "\x00",
]


def test_an_action_that_alfworld_does_not_know_changes_nothing() -> None:
    _, game = compose("train", "look_at_obj_in_light", 0, seed=0)
    engine = GameEngine(game)
    _, admissible, _ = engine.reset()
    for action in ODD:
        if " ".join(action.split()) not in admissible:
            assert engine.step(action) == ("Nothing happens.", admissible, False), action


class Shelf:
    """A retriever of one passage that wants to be asked something."""

    name = "shelf"

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        assert all(query.strip() for query in queries)
        return [[Hit(Passage("1", '"Norway"\nIts capital is Oslo.'), 1.0)] for _ in queries]

    def close(self) -> None: ...


class TestSearchInPlay:
    def play(self, *actions: str, max_steps: int = 4) -> list[tuple[str, bool, bool]]:
        async def run() -> list[tuple[str, bool, bool]]:
            desk = SearchDesk(Shelf(), max_batch=4, calls=1)
            session = SearchSession(
                Question("1", "nq", "who?", ("Oslo",)), desk, EnvSection(name="search", max_steps=max_steps)
            )
            await session.reset()
            states = [await session.step(action) for action in actions]
            await desk.close()
            return [(state.observation, state.done, state.success) for state in states]

        return asyncio.run(run())

    def test_an_empty_answer_ends_the_episode_and_is_wrong(self) -> None:
        assert self.play("<answer></answer>") == [("", True, False)]

    def test_an_empty_query_finds_nothing_and_no_action_is_said_to_be_none(self) -> None:
        assert self.play("<search></search>", "") == [(NO_RESULTS, False, False), (INVALID, False, False)]

    def test_what_a_query_quotes_is_not_an_action(self) -> None:
        (query, done, _), (_, ended, right) = self.play(
            "<search>x <answer>Oslo</answer></search>", "<answer>\nOslo </answer>"
        )
        assert not done and query != INVALID and ended and right


class TestCommand:
    CASES = (
        {
            "benchmark": "alfworld",
            "response": "<think></think></action>x<action>",
            "action": "",
            "valid": True,
        },
        {
            "benchmark": "webshop",
            "response": "no tags at all, a tail of twenty",
            "action": "ll, a tail of twenty",
            "valid": False,
        },
        {
            "benchmark": "search",
            "response": "<SEARCH> q</Search>",
            "action": "<search>q</search>",
            "valid": True,
        },
    )

    def file(self, folder: Path, *changes: tuple[int, str, object]) -> str:
        cases = [dict(case) for case in self.CASES]
        for number, key, value in changes:
            cases[number][key] = value
        path = folder / "cases.json.gz"
        path.write_bytes(gzip.compress(json.dumps(cases).encode()))
        return str(path)

    def test_counts_what_agrees(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([self.file(tmp_path)]) == 0
        assert capsys.readouterr().out.split("\n")[0] == "alfworld: 1 responses, 0 read differently"

    @pytest.mark.parametrize(
        ("number", "key", "value"),
        [(0, "valid", False), (1, "action", "x"), (2, "action", "<search> q</search>")],
    )
    def test_every_difference_counts(
        self, number: int, key: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([self.file(tmp_path, (number, key, value))]) == 1
        out = capsys.readouterr().out
        assert (
            out.startswith(f"case {number}, {self.CASES[number]['benchmark']}: ")
            and out.count("1 read differently") == 1
        )

    def test_a_file_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("{}")
        assert main([str(tmp_path / "x")]) == main([str(tmp_path / "none")]) == 1
        (tmp_path / "x").write_text("[]")
        assert main([str(tmp_path / "x")]) == 1


VERDICTS = "reference/agent_rl/validity.json.gz"


@beside(VERDICTS)
def test_the_reference_s_own_verdicts() -> None:
    checkout = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.envs.reference_validity", str(SHARED / VERDICTS)]
    ended = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
