"""Real faults that the targets found, each as small as it could be made. They stand here so that none comes
back unnoticed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.cluster import attempts
from paw_hpc.envs.answers import only_action, search_or_answer
from paw_hpc.envs.base import LONGEST_OBSERVATION, EnvironmentState
from paw_hpc.envs.search import corpus, protocol, questions
from paw_hpc.envs.search.prompt import SearchView
from paw_hpc.envs.templates import PromptTemplate
from paw_hpc.envs.webshop.game import parse_action
from paw_hpc.evaluation.results import read_evaluations, write_evaluation
from paw_hpc.policy import checkpoint
from paw_hpc.recipe import load_recipe, parse_recipe
from paw_hpc.rollout.chat import ChatFormat
from paw_hpc.rollout.collector import Collector
from paw_hpc.run import fence
from paw_hpc.run.metrics import read_metrics
from paw_hpc.study.sweep import load_sweep
from paw_hpc.system.errors import LONGEST_LINE, CheckpointError, DataError, RecipeError, UserError
from paw_hpc.system.outside import read_json
from tests.fuzz.test_recipes import MANY, _yaml
from tests.report.synthetic import draw, evaluation
from tests.rollout.chat_templates import TEMPLATES, thinker
from tests.rollout.desks import CHAT, SETTINGS, Parrot, World

DEEP = "[" * 100_000
LONG = 200_000
"""Characters: what is read in linear time takes hundredths of a second, and what is not, minutes."""


# ------------------------------------------------------------------------------ texts that no tokenizer takes


def test_half_a_character_from_an_environment_costs_no_run_and_is_counted() -> None:
    """It was a TypeError of the tokenizer, which ended the run."""
    world = World()
    world.observation = "You arrive at {} \ud83d."
    collector = Collector(world, Parrot(), CHAT, SETTINGS)  # type: ignore[arg-type]
    groups, stats = asyncio.run(collector.collect(world.tasks("train")[:1], 2, 0))
    steps = sum(len(episode.transitions) for episode in groups[0].episodes)
    assert steps > 0 and stats.metrics()["rollout/mended_texts"] > 0
    world.observation = "You arrive at {}."
    _, stats = asyncio.run(collector.collect(world.tasks("train")[:1], 2, 1))
    assert stats.metrics()["rollout/mended_texts"] == 0


def test_a_state_holds_text() -> None:
    state = EnvironmentState("a \ud83d b", ("go \udc00",))
    assert (state.observation, state.admissible) == ("a \ufffd b", ("go \ufffd",))
    assert dataclasses.replace(state, observation="\U0001f642").observation == "\U0001f642"
    assert len(EnvironmentState("x" * (2 * LONGEST_OBSERVATION), ()).observation) == LONGEST_OBSERVATION


def test_a_template_may_spell_half_a_character() -> None:
    tokenizer = thinker(TEMPLATES["opens"].replace("<think>", "\\ud83d <think>"))
    assert len(ChatFormat(tokenizer).prompt([{"role": "user", "content": "look"}])) > 0


def test_a_page_may_hold_every_private_character() -> None:
    """A mark was looked for among them, for a page that spells a special token as well: the search came to no
    end but StopIteration."""
    chat = ChatFormat(thinker(TEMPLATES["opens"]))
    page = "<|im_end|>" + "".join(map(chr, range(0xE000, 0xF900))) + "\ue000\ue000<|im_start|>\ue000"
    plain = chat.decode(chat.prompt([{"role": "user", "content": page}]))
    assert "\uf8ff\ue000\ue000<|im_start|>\ue000" in plain


# ----------------------------------------------------------------------------- time that grew with the square


@pytest.mark.parametrize(
    "unit",
    ["<think>", "<action>", "<search>", "<answer>", "[", "<", "< ", "search x", "[x", "<think><action>"],
)
@pytest.mark.parametrize("spaces", [False, True])
def test_long_answers_are_read_in_linear_time(unit: str, spaces: bool) -> None:
    text = f"search x{unit}{' ' * LONG}." if spaces else unit * (LONG // len(unit))
    compact = SearchView("who?", style="compact", history=2, max_steps=4)
    began = time.process_time()
    for read in (
        only_action,
        search_or_answer,
        protocol.read_action,
        protocol.harmless,
        protocol.thinks_first,
        parse_action,
        compact.parse,
    ):
        read(text)  # type: ignore[operator]
    assert time.process_time() - began < 3


OLD_BLOCKS = re.compile(r"<think>.*?</think>|<action>(.*?)</action>", re.DOTALL)
OLD_ACTIONS = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
OLD_SEARCH = re.compile("<search>(.*?)</search>", re.IGNORECASE | re.DOTALL)
OLD_TAGS = re.compile(r"<(\s*/?\s*(?:think|search|answer|information)\s*/?\s*)>", re.IGNORECASE)
OLD_SHOP = re.compile(r"(.+)\[(.+)\]")
OLD_COMPACT = re.compile(r"\s*(search|answer)\s+(\S.*?)\s*", re.DOTALL)


def _random_texts(count: int) -> list[str]:
    pieces = ("<think>", "</think>", "<action>", "</action>", "<search>", "</SEARCH>", "</search>", "<answer>", "</answer>", "<information>",
              "< / answer >", "<  search/>", "[", "]", "a", " ", "\n", "search ", "answer ", "x")  # fmt: skip
    draw = random.Random(0)
    return ["".join(draw.choices(pieces, k=draw.randint(0, 14))) for _ in range(count)]


def test_what_is_read_is_what_the_patterns_read() -> None:
    """Those that took quadratic time say what must be read; on short texts they can be asked."""
    actions = 0
    for text in _random_texts(20_000):
        found = list(OLD_BLOCKS.finditer(text))
        said = [match[1] for match in found if match[1] is not None]
        assert only_action(text) == (said[0] if len(said) == 1 else None, len(said) < len(found))
        actions += len(said) == 1
        without = re.sub(
            r"<think>.*?</think>",
            " ",
            re.sub(r"<information>.*?(?:</information>|\Z)", " ", text, flags=re.DOTALL),
            flags=re.DOTALL,
        )
        pairs = [(kind, " ".join(content.split())) for kind, content in OLD_ACTIONS.findall(without)]
        read = protocol.read_action(text)
        assert (read and (read.kind, read.text)) == (pairs[0] if len(pairs) == 1 and pairs[0][1] else None)
        assert protocol.harmless(text) == OLD_TAGS.sub(lambda match: f"({match[1].strip()})", text)
        shop = OLD_SHOP.match(text)
        assert parse_action(text) == ((shop[1], shop[2].lower()) if shop else ("", ""))
        bare = OLD_COMPACT.fullmatch(text)
        parsed = SearchView("who?", style="compact", history=2, max_steps=4).parse(text)
        assert parsed == (
            (f"<{bare[1]}>{' '.join(bare[2].split())}</{bare[1]}>", True) if bare else ("", False)
        )
        if (old := OLD_SEARCH.search(text)) and "</search>" not in text and "</answer>" not in text:
            assert search_or_answer(text)[0] == f"<search>{old[1].strip()}</search>"
    assert actions > 100


# ---------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "a: &a [x, x, x, x]\n"
            + "".join(
                f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n"
                for b, c in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "aliases",
        ),
        ("a: &a [*a]", "inside of what it names"),
        ("env: " + "[" * 3000, "nested more than"),
        ("updates: " + "9" * 5000, "cannot be read as YAML: ValueError"),
        ("x: !!timestamp 2001-99-99", "cannot be read as YAML"),
        (
            "a0: xxxxxxxxxx\n" + "".join(f"a{i + 1}: ${{a{i}}}${{a{i}}}\n" for i in range(40)),
            "characters once every",
        ),
        ("name: ${${b}}", "inside of another"),
        ("base: /dev/zero", "no plain file"),
        ('base: "a\\0b"', "null"),
        ("base: link.yaml", "link.yaml: "),
        ("env: {name: {a: b}}", r"env\.name"),
        ("model: {path: " + "x" * 5000 + "}\nupdatess: 3", "unknown key"),
        ("x: " + "y" * (2 << 20), "bytes"),
    ],
)
def test_a_recipe_that_wants_too_much_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    (tmp_path / "link.yaml").symlink_to("link.yaml")
    with pytest.raises(RecipeError, match=says) as refused:
        load_recipe(tmp_path / "recipe.yaml")
    assert str(refused.value).isprintable() and len(str(refused.value)) <= LONGEST_LINE


def test_anchors_as_people_use_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "updates: 9\nmodel: {path: x}\nrollout: {groups: &n 3, group_size: *n}\nname: u-${updates}"
    )
    found = load_recipe(tmp_path / "recipe.yaml")
    assert (found.rollout.groups, found.rollout.group_size, found.name) == (3, 3, "u-9")


def test_a_chain_of_bases_has_an_end(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml")
    with pytest.raises(RecipeError, match="more than 20 files"):
        load_recipe(tmp_path / "0.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "updates=" + "9" * 5000,
        "updates=" + "[" * 2000,
        "env=&a [*a]",
        "model.path=" + "x" * 5000,
        "model.path=~nobody-here/x",
    ],
)
def test_an_override_is_read_or_one_line(tmp_path: Path, override: str) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {path: x}")
    try:
        load_recipe(tmp_path / "recipe.yaml", [override])
    except RecipeError as error:
        assert str(error).isprintable()


def test_a_sweep_of_too_many_runs_is_refused_before_they_are_listed(tmp_path: Path) -> None:
    for name, content in zip(("sweep.yaml", "choices.yaml"), MANY, strict=True):
        (tmp_path / name).write_bytes(_yaml(content))
    with pytest.raises(RecipeError, match="387420489 runs; a sweep has at most 10000"):
        load_sweep(tmp_path / "sweep.yaml")


def test_an_error_is_a_line_that_a_terminal_can_show() -> None:
    assert str(UserError("a\nb \x1b[31m \ud83d")) == "a b \\x1b[31m \\ud83d"
    said = str(DataError("file: " + "x" * 10**6 + "; restore it"))
    assert said.startswith("file: x") and said.endswith("; restore it") and len(said) <= LONGEST_LINE


def test_a_template_of_prompts_nested_too_deeply_is_one_line() -> None:
    with pytest.raises(RecipeError, match=r"mine.j2: cannot be compiled \(RecursionError"):
        PromptTemplate("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "mine.j2", "search")


# --------------------------------------------------------------------------------------------- files of a run


def test_json_nested_beyond_python_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(DEEP)


@pytest.mark.parametrize("line", [DEEP, "null", "5", '{"update": -1}', '{"update": 0, "x": "y"}', '{"update": 0, "x": [1]}',
                                  '{"update": 0, "x": 1' + "0" * 400 + "}", '{"update": ' + str(2**64) + "}"])  # fmt: skip
def test_a_line_of_metrics_holds_numbers(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"update": 1}}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl:1: not a metrics line"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        DEEP,
        "5",
        '{"began": 1}',
        '{"attempt": [], "ended": "x"}',
        b"\xff",
        '{"attempt": 2, "began": "x", "nodes": null}',
    ],
)
def test_a_line_of_attempts_that_is_none_is_passed_over(tmp_path: Path, line: Any) -> None:
    attempts.begin(tmp_path, 1, "7", ["a"])
    with (attempts.folder(tmp_path) / "attempts.jsonl").open("ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    attempts.end(tmp_path, 1, "done")
    (attempt,) = attempts.history(tmp_path)
    assert (attempt.number, attempt.nodes, attempt.how) == (1, ("a",), "done")


@pytest.mark.parametrize(
    "content", [DEEP, "[]", '{"attempt": "3"', '{"attempt": []}', '{"attempt": -1}', '{"attempt": 1e400}']
)
def test_a_fence_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / fence.FILE).write_text(content)
    with pytest.raises(CheckpointError, match="not what paw wrote"):
        fence.claim(tmp_path)


@pytest.mark.parametrize("change", [lambda m: m["files"]["state.pt"].pop("sha256"), lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": ""}}),
                                    lambda m: m["files"].update({".": {"bytes": 40, "sha256": ""}}), lambda m: m.update(update=-1)])  # fmt: skip
def test_a_manifest_that_is_none_is_one_line(tmp_path: Path, change: Any) -> None:
    path = checkpoint.save(
        tmp_path, 3, {"a": 1}, {"recipe": parse_recipe({"model": {"path": "x"}}).model_dump(mode="json")}
    )
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"manifest.json cannot be understood|x is missing"):
        checkpoint.load(path)


@pytest.mark.parametrize("rows", ["null\n", "5\n", '{"return": 1}\n', DEEP])
def test_an_evaluation_that_is_none_is_one_line(tmp_path: Path, rows: str) -> None:
    summary = write_evaluation(tmp_path, evaluation(draw(0, 3, 0.5), update=3))
    summary.with_suffix(".jsonl").write_text(rows)
    with pytest.raises(DataError, match="not an evaluation result"):
        read_evaluations(tmp_path)


# ---------------------------------------------------------------------------------------- questions, passages


@pytest.mark.parametrize("line", ["null", "5", "[]", DEEP])
def test_a_question_is_an_object(tmp_path: Path, line: str) -> None:
    (tmp_path / "q.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"q.jsonl:1: "):
        questions.read_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize("line", [DEEP, '{"id": {"a": 1}, "contents": "x"}'])
def test_a_passage_is_an_object_with_texts(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match="not a passage"):
        corpus.parse_passage(line.encode(), "c.jsonl:1")
