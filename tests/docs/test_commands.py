"""Every command of the README and of the site's pages is run, or says why not (see commands.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.commands import blocks, inline
from tests.docs.runner import ROOT, Runner, Wrong, understood
from website import build


def _pages() -> list[str]:
    """Markdown files of the repository that are pages of the site, or its README."""
    found, waiting = {"README.md"}, list(build.Stage(ROOT, Path()).pages)
    stage = build.Stage(ROOT, Path())
    while waiting:
        source = waiting.pop()
        if source.endswith(".md"):
            known = len(stage.pages)
            stage.page(source)
            found.add(source)
            waiting += list(stage.pages)[known:]
    return sorted(found)


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    made = Runner(tmp_path, monkeypatch, capsys)
    made.prepare()
    return made


def problems(text: str, runner: Runner) -> list[str]:
    """What is wrong with the commands of a page."""
    for block in blocks(text):
        runner.block(block)
    for command in inline(text):
        try:
            understood(command.words, named=True)
        except Wrong as error:
            runner.problems.append(f"line {command.line}: {' '.join(command.words)}: {error}")
    return runner.problems


@pytest.mark.parametrize("page", _pages())
def test_every_command_is_run_or_marked(page: str, runner: Runner) -> None:
    assert problems((ROOT / page).read_text(), runner) == []


def test_the_pages_have_commands() -> None:
    """The control: the search for them finds them."""
    found = {
        page: [one for block in blocks((ROOT / page).read_text()) for one in block.commands]
        for page in _pages()
    }
    assert len(found["README.md"]) >= 4 and sum(map(len, found.values())) > 40


PLAN = "$ paw plan recipes/alfworld/qwen2.5-1.5b-grpo-paw.yaml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("    paw plan recipes/none.yaml\n", "the repository has no recipes/none.yaml"),
        ("    paw trian recipes/quickstart.yaml\n", "no such command: paw trian"),
        ("    paw train recipes/quickstart.yaml --sed 1\n", "No such option"),
        ("    paw train recipes/quickstart.yaml wm.aplha=1\n", "wm.aplha"),
        ("```sh\npaw train recipes/quickstart.yaml \\\n  wm.alpha=2\n```\n", "wm.alpha"),
        ("    paw eval runs/a --panel validseen\n", "is no panel of"),
        ("    paw eval warm-start --panel test\n", "is no panel of alfworld"),
        ("    paw study recipes/miniature/arms.yaml wm.loss=mea\n", "wm.loss"),
        ("    paw launch recipes/paper/table1.yaml --only nothing\n", "no run of"),
        ("    paw convert runs/a b\n", "neither run nor marked"),
        ("    pip install paw-hpc\n", "neither run nor marked"),
        ("    make no-such-target\n", "no-such-target"),
        (
            "<!-- not run: hours -->\n    paw train recipes/none.yaml\n",
            "the repository has no recipes/none.yaml",
        ),
        (
            "<!-- not run: tests/test_none.py does -->\n    pip install paw-hpc\n",
            "its mark names tests/test_none.py",
        ),
        ("<!-- not run: hours -->\n    paw train recipes/quickstart.yaml --sed 1\n", "No such option"),
        (
            "```console\n" + PLAN + "\nalfworld-reference-qwen2.5-1.5b-grpo-paw: 1.64B parameters\n```\n",
            "does not print",
        ),
        ("```console\n" + PLAN + "\npaw: cluster: too large\n```\n", "ended with status 0"),
        ("```console\n$ paw train quickstart updates=0\npaw: ...: updates: too few\n```\n", "does not print"),
        (
            "```console\n$ PAW_DATA=recipes paw data search verify --data generated\npaw: PAW_DATA: "
            "none\n```\n",
            "ended with status 0",
        ),
        ("```console\n" + PLAN + " megatron.tensor_parallel=0\n```\n", "ended with status 2"),
        ("as `paw pln RECIPE` does\n", "no such command: paw pln"),
        ("as `paw train RECIPE --resum` does\n", "has no option --resum"),
        ("as `paw data BENCHMARK promt` does\n", "no such command: paw data alfworld promt"),
    ],
)
def test_a_wrong_command_is_found(text: str, said: str, runner: Runner) -> None:
    [found] = problems(text, runner)
    assert said in found


@pytest.mark.parametrize(
    "text",
    [
        "    paw train recipes/quickstart.yaml wm.alpha=0.75 seed=1   # with a comment\n",
        "<!-- file: mine.yaml -->\n```yaml\nbase: recipes/quickstart.yaml\nname: mine\n```\n\n    paw "
        "train mine.yaml seed=2\n",
        "<!-- not run: needs a Megatron run -->\n    paw convert runs/a b\n",
        "```console\n" + PLAN + "\nalfworld-reference-...: 1.54B parameters, ...\n...\n```\n",
        "```yaml\npaw: no command\n```\n\n    name   a table\n",
        "    paw report runs/a runs/b-s*\n",
    ],
)
def test_a_right_command_is_not(text: str, runner: Runner) -> None:
    assert problems(text, runner) == []


@pytest.mark.parametrize(
    "text", ["<!-- not run: an hour -->\n\nNo block here.\n", "<!-- not run: an hour -->\n\n    just text\n"]
)
def test_a_mark_marks_a_block_of_commands(text: str, runner: Runner) -> None:
    with pytest.raises(ValueError, match="line"):
        problems(text, runner)
