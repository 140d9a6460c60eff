"""Prompts as data: today's words byte for byte, what the reference's form shows, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.envs.alfworld.prompt import AlfworldView
from paw_hpc.envs.base import EnvironmentState, Task
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.envs.examples import example_prompts
from paw_hpc.envs.search.prompt import SearchView
from paw_hpc.envs.templates import SHIPPED, PromptTemplate, load_template, shipped_template, variables_of
from paw_hpc.recipe import EnvSection, dump_recipe, load_recipe, parse_recipe
from paw_hpc.system.errors import RecipeError
from tests.envs.prompt_cases import ROOM, cases

BENCHMARKS: tuple[str, ...] = ("alfworld", "webshop", "search")
FROZEN = json.loads((Path(__file__).parent / "frozen_prompts.json").read_text(encoding="utf-8"))


def env(benchmark: str, template: str | None) -> EnvSection:
    return EnvSection(name=benchmark, prompt_template=template, max_steps=7, history=2)


def test_the_default_templates_give_the_frozen_texts_byte_for_byte() -> None:
    made = dict(cases())
    assert made.keys() == FROZEN.keys() and len(made) > 60
    assert [name for name in made if made[name].encode() != FROZEN[name].encode()] == []


class TestReferenceForms:
    def test_alfworld_s_first_step_has_the_task_inside_the_observation_and_nothing_of_the_past(self) -> None:
        first, *_, later = example_prompts(env("alfworld", "reference"))
        assert ROOM.strip() in first and first.count("put some mug on shelf") == 1
        assert "Steps you have taken" not in first and "step 1" not in first
        assert (
            "put some mug on shelf" in later.split("\n")[0] and ROOM not in later and "Welcome" not in later
        )

    @pytest.mark.parametrize("benchmark", ["alfworld", "webshop"])
    def test_what_a_later_step_shows_and_in_which_order(self, benchmark: str) -> None:
        later = example_prompts(env(benchmark, "reference"))[-1]
        actions = {"alfworld": " 'move mug 1 to shelf 1',\n", "webshop": " 'click[white]',\n"}[benchmark]
        parts = [
            "asked to do",
            "before this one: 3",
            "[Step 2: ",
            "[Step 3: ",
            "This is step 4",
            "you observe now",
            actions,
            "<think>",
            "<action>",
        ]
        places = [later.index(part) for part in parts]
        assert places == sorted(places) and "[Step 1" not in later
        listed = later.split("[\n")[1].split("\n]")[0].split("\n")
        assert (
            len(listed) >= 5
            and all(line.startswith(" '") and line.endswith("',") for line in listed)
            and " 'help'," not in listed
        )

    def test_alfworld_s_history_begins_with_the_observation_that_has_the_task(self) -> None:
        assert ROOM.strip() in example_prompts(env("alfworld", "reference"))[1]

    def test_search_shows_every_query_with_what_it_brought(self) -> None:
        first, second, *_ = example_prompts(env("search", "reference"))
        assert (
            "<information>" not in first
            and "Step 1: <search>painter born in</search> <information>Doc 1" in second
        )

    @pytest.mark.parametrize("benchmark", BENCHMARKS)
    def test_a_history_that_does_not_fit_is_left_out_and_counted(self, benchmark: str) -> None:
        task, now = ("do it" if name == "task" else "now" for name in ("task", "observation"))
        given = {
            "task": task,
            "step": 3,
            "steps_taken": 2,
            "max_steps": 9,
            "history": [],
            "observation": now,
            "opening": "x",
            "actions": ["a"],
        }
        given["options_left_out"] = False
        text = shipped_template(benchmark, "reference").render(
            **{name: given[name] for name in variables_of(benchmark)}
        )
        assert "before this one: 2" in text and "latest" not in text


class TestWhatEnvironmentsSay:
    HOSTILE = "{{ 7*7 }} {% for x in range(9) %}x{% endfor %} {# c #} <b>&"

    @pytest.mark.parametrize("choice", SHIPPED)
    def test_is_never_read_as_a_template(self, choice: str) -> None:
        view = AlfworldView(
            Task("t", "x", ""), style="paper", history=2, seed=0, template=load_template("alfworld", choice)
        )
        view.start(EnvironmentState(ROOM, (self.HOSTILE,)))
        for _ in range(2):
            view.observe(self.HOSTILE, EnvironmentState(self.HOSTILE, (self.HOSTILE,)))
        text = view.messages()[0]["content"]
        assert text.count(self.HOSTILE) == 5 and "49" not in text
        search = SearchView(
            self.HOSTILE, style="paper", history=2, max_steps=4, template=load_template("search", choice)
        )
        assert self.HOSTILE in search.messages()[0]["content"]


class TestOwnTemplates:
    def write(self, folder: Path, text: str) -> str:
        (folder / "mine.j2").write_text(text, encoding="utf-8")
        return str(folder / "mine.j2")

    def test_a_file_stands_in_for_the_shipped_words(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            "{% for t in history %}\n{{ t.step }}. {{ t.action }}\n{% endfor %}\n{{ task }} ({{ step }}/{{ "
            "max_steps }})\n",
        )
        assert (
            example_prompts(env("alfworld", path))[3]
            == "2. take mug 1 from desk 1\n3. go to shelf 1\nput some mug on shelf. (4/7)"
        )

    @pytest.mark.parametrize("benchmark", BENCHMARKS)
    def test_every_documented_variable_is_there_and_no_other(self, benchmark: str, tmp_path: Path) -> None:
        path = self.write(tmp_path, "".join(f"{name}={{{{ {name} }}}}\n" for name in variables_of(benchmark)))
        assert len(example_prompts(env(benchmark, path))) == 4
        page = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
        section = page.split(f"\n### {benchmark}\n")[1].split("\n### ")[0].split("\n## ")[0]
        documented = [line.split("`")[1] for line in section.split("\n") if line.startswith("| `")]
        assert sorted(documented) == sorted(variables_of(benchmark))

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("one\n{{ tsak }}", "line 2: unknown variable 'tsak'; there are task, step"),
            ("\n\n{% if opning %}x{% endif %}", "line 3: unknown variable 'opning'"),
            ("{{ options_left_out }}", "line 1: unknown variable 'options_left_out'"),  # WebShop's
            (
                "a\n{% for t in history %}\n{{ t.observed }}\n{% endfor %}b",
                "line 3: 'dict object' has no attribute 'observed'",
            ),
            ("a\n{% for t in history %}", "line 2: Unexpected end of template"),
            ("{{ task | nofilter }}", "line 1: No filter named 'nofilter'"),
            ("{{ actions | random }}", "line 1: No filter named 'random'"),
            ("{{ lipsum() }}", "line 1: unknown variable 'lipsum'"),
            ("\n{{ 1 / steps_taken }}", "line 2: ZeroDivisionError"),
            ("{{ task.__class__.__mro__ }}", "line 1: access to attribute '__class__'"),
            ("x{{ history.append(1) }}", "line 1: "),
            ("{% include 'other.j2' %}", "line 1: TypeError: no loader"),
            ("x\n{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without an end"),
            ("{% if step == 1 %}x{% endif %}", "nothing is written at step 3"),
            ("", "nothing is written at step 1"),
        ],
    )
    def test_what_does_not_work_is_refused_before_anything_is_played(
        self, text: str, said: str, tmp_path: Path
    ) -> None:
        path = self.write(tmp_path, text)
        with pytest.raises(RecipeError) as caught:
            make_benchmark(env("alfworld", path))
        assert (
            str(caught.value).startswith(f"env.prompt_template: {path}")
            and said in str(caught.value)
            and "\n" not in str(caught.value)
        )

    def test_what_no_trial_met_is_an_error_with_its_place_too(self) -> None:
        template = PromptTemplate(
            "x\n{% if step > 9 %}\n{{ history[0].gone }}\n{% endif %}", "late.j2", "search"
        )
        with pytest.raises(RecipeError, match=r"late\.j2, line 3: .*'gone'"):
            template.render(task="t", step=10, steps_taken=9, max_steps=12, history=[{"step": 9}])

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(
            RecipeError, match=r"env\.prompt_template: .*none\.j2: No such file.*default, reference"
        ):
            load_template("search", str(tmp_path / "none.j2"))
        with pytest.raises(RecipeError, match=r"Is a directory"):
            load_template("search", str(tmp_path))
        (tmp_path / "latin.j2").write_bytes(b"caf\xe9 {{ task }}")
        with pytest.raises(RecipeError, match="not a text in UTF-8"):
            load_template("search", str(tmp_path / "latin.j2"))

    def test_a_stored_recipe_finds_it_from_another_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(tmp_path, "{{ task }}")
        monkeypatch.chdir(tmp_path)
        recipe = parse_recipe({"env": {"prompt_template": "mine.j2"}, "model": {"path": "x"}})
        (tmp_path / "stored").mkdir()
        (tmp_path / "stored" / "recipe.yaml").write_text(dump_recipe(recipe))
        monkeypatch.chdir(tmp_path / "stored")
        again = load_recipe("recipe.yaml")
        assert again == recipe and again.env.prompt_template == str(tmp_path / "mine.j2")
        assert load_template("alfworld", again.env.prompt_template).file == str(tmp_path / "mine.j2")

    def test_the_home_of_nobody(self) -> None:
        with pytest.raises(RecipeError, match="no such user's home"):
            parse_recipe({"env": {"prompt_template": "~nobody-of-this-name/x.j2"}, "model": {"path": "x"}})

    def test_names_are_not_paths_and_default_is_none(self) -> None:
        assert (
            env("search", "default").prompt_template is None
            and env("search", "reference").prompt_template == "reference"
        )
        with pytest.raises(RecipeError, match=r"env: .*prompt_template: prompts of prompt=compact"):
            parse_recipe(
                {"env": {"prompt_template": "reference", "prompt": "compact"}, "model": {"path": "x"}}
            )


class TestCommand:
    @pytest.mark.parametrize("benchmark", BENCHMARKS)
    @pytest.mark.parametrize("template", SHIPPED)
    def test_shows_a_first_and_a_later_step(self, benchmark: str, template: str) -> None:
        result = CliRunner().invoke(app, ["data", benchmark, "prompt", "--template", template])
        first, _, *_, last = example_prompts(
            EnvSection(
                name=benchmark,
                prompt_template=template,
                max_steps=4,
                history=4 if benchmark == "search" else 2,
            )
        )
        assert result.exit_code == 0 and last.split("at step 4")[0] in result.stdout
        assert (
            result.stdout.startswith(f"----- step 1 -----\n{first.split('of at most')[0]}")
            and "----- step 4 -----\n" in result.stdout
        )

    def test_tells_what_is_wrong_with_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.j2").write_text("{{ tsak }}")
        result = CliRunner().invoke(app, ["data", "search", "prompt", "--template", str(tmp_path / "x.j2")])
        assert isinstance(result.exception, RecipeError) and "unknown variable 'tsak'" in str(
            result.exception
        )
