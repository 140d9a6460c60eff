"""WebShop behind the benchmark protocol: sessions, panels, prompts, scripted players, the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from paw_hpc.cli import main as cli
from paw_hpc.envs.base import EnvironmentState, Task
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.envs.webshop import agents
from paw_hpc.envs.webshop.benchmark import ShopSession, Webshop
from paw_hpc.envs.webshop.catalogue import Catalogue
from paw_hpc.envs.webshop.game import SEARCH_ENTRY, Game
from paw_hpc.envs.webshop.prompt import WebshopView
from paw_hpc.envs.webshop.reward import Tagger
from paw_hpc.recipe import EnvSection, parse_recipe
from paw_hpc.system.errors import DataError
from tests.envs.webshop.test_game import GOAL


def shop(catalogue: Catalogue, **env: Any) -> Webshop:
    made = make_benchmark(
        parse_recipe({"model": {"path": "p"}, "env": {"name": "webshop", "max_steps": 15, **env}}).env
    )
    assert isinstance(made, Webshop)
    made.__dict__["catalogue"] = catalogue
    return made


def oracle_actions(session: ShopSession) -> tuple[str, ...]:
    route = agents.plan_route(session.game)
    assert route is not None
    return route.actions


class TestSessions:
    def test_a_full_score_is_success_and_worth_the_reward(self, made: Catalogue) -> None:
        bench = shop(made)
        first, second = asyncio.run(bench.open(bench.tasks("test")[0], 2))
        assert isinstance(first, ShopSession) and isinstance(second, ShopSession)
        states = [first.act(action) for action in oracle_actions(first)]
        assert [state.done for state in states] == [False] * (len(states) - 1) + [True]
        last = states[-1]
        assert (last.success, last.score, last.reward, sum(state.reward for state in states)) == (
            True,
            1.0,
            10.0,
            10.0,
        )
        assert second.game.available.has_search_bar  # members share nothing but the catalogue

    def test_a_part_of_the_score_is_no_success(self, lamps: Catalogue, tagger: Tagger) -> None:
        session = ShopSession(Game(lamps, GOAL, tagger), 15, 10.0)
        for action in ("search[lamp]", "click[b000000001]"):
            session.act(action)
        last = session.act("click[buy now]")
        assert last.done and not last.success and (last.reward, round(last.score, 4)) == (0.0, 0.6667)

    def test_an_episode_ends_after_max_steps(self, lamps: Catalogue, tagger: Tagger) -> None:
        session = ShopSession(Game(lamps, GOAL, tagger), 3, 10.0)
        states = [session.act("nonsense") for _ in range(3)]
        assert [state.done for state in states] == [False, False, True] and states[-1].score == 0.0

    def test_pages_come_without_the_instruction_after_the_first(
        self, lamps: Catalogue, tagger: Tagger
    ) -> None:
        session = ShopSession(Game(lamps, GOAL, tagger), 15, 10.0)
        assert (
            asyncio.run(session.reset()).observation
            == "WebShop [SEP] Instruction: [SEP] Find me a lamp [SEP] Search"
        )
        assert (
            asyncio.run(session.step("search[zzz]")).observation
            == "Back to Search [SEP] Page 1 (Total results: 0) [SEP] Next >"
        )
        assert asyncio.run(session.step("click[back to search]")).observation == "WebShop [SEP] Search"

    def test_available_actions(self, lamps: Catalogue, tagger: Tagger) -> None:
        session = ShopSession(Game(lamps, GOAL, tagger), 15, 10.0)
        assert asyncio.run(session.reset()).admissible == (SEARCH_ENTRY,)
        assert session.act("search[zzz]").admissible == ("click[back to search]", "click[next >]")


class TestPanels:
    def test_test_panel_of_the_small_set(self, small: Catalogue) -> None:
        """Literal: the panel is the same on every machine, for ever."""
        panel = shop(small).panel("test")
        assert (
            panel.name == "WebShop small synthetic test"
            and len(panel.tasks) == len({t.task_id for t in panel.tasks}) == 500
        )
        assert (
            panel.tasks[0].task_id.startswith("synthetic/0000000-B0743JKHBV-")
            and panel.tasks[0].task_type == "garden"
        )
        part = shop(small).panel("test:6@1")
        assert [task.source for task in part.tasks] == [
            str(int(task.task_id.split("/")[1][:7])) for task in part.tasks
        ]
        assert part.checksum != panel.checksum and set(part.tasks) <= set(panel.tasks)

    def test_seeded_parts(self, small: Catalogue) -> None:
        bench = shop(small, train_games=30)
        assert len(bench.tasks("train")) == 30 and not set(bench.tasks("train")) & set(bench.tasks("test"))
        assert (
            bench.panel("train:5@0").tasks == bench.panel("train:5@0").tasks != bench.panel("train:5@1").tasks
        )

    def test_unknown_and_empty_splits(self, small: Catalogue) -> None:
        with pytest.raises(DataError, match="no such panel; one of test, train"):
            shop(small).panel("valid_seen")
        with pytest.raises(
            DataError, match=r"none of its 13 human goals is left for train .*env\.webshop\.goals=synthetic"
        ):
            shop(small, webshop={"goals": "human"}).tasks("train")
        assert len(shop(small, webshop={"goals": "human"}).tasks("test")) == 13

    def test_the_source_says_what_is_played(self, made: Catalogue) -> None:
        assert (
            shop(made).source
            == f"WebShop generated-v1-150-1, 150 products, {len(made.goals('synthetic'))} synthetic goals, "
            "nouns by TextBlob"
        )


class TestPlayers:
    def test_the_oracle_on_the_test_goals(self, small: Catalogue, tagger: Tagger) -> None:
        """A few goals score below 1 with the right product and options, whoever plays: 458 of all 6910, 20 of
        the first 500."""
        goals = small.goals("synthetic")
        scores = [
            agents.play(game, route.actions)
            for i in range(500)
            if (route := agents.plan_route(game := Game(small, goals[i], tagger)))
        ]
        assert len(scores) >= 0.99 * 500
        assert sum(score == 1.0 for score in scores) / len(scores) >= 0.95 and min(scores) > 0.6

    def test_the_oracle_on_generated_goals(self, made: Catalogue, tagger: Tagger) -> None:
        games = [Game(made, goal, tagger) for goal in made.goals("synthetic")]
        scores = [
            agents.play(game, route.actions)
            for game in games
            if (route := agents.plan_route(game, brief=True))
        ]
        assert len(scores) >= 0.9 * len(games) and scores == [1.0] * len(scores)

    def test_a_random_one(self, small: Catalogue, tagger: Tagger) -> None:
        goals = small.goals("synthetic")
        scores = [
            agents.play(game, agents.random_actions(game, Random(i), 15))
            for i in range(1500)
            for game in [Game(small, goals[i], tagger)]
        ]
        assert 0.02 < sum(scores) / len(scores) < 0.05

    def test_the_right_product_with_wrong_options_is_worth_less(
        self, made: Catalogue, tagger: Tagger
    ) -> None:
        goal = next(g for g in made.goals("synthetic") if len(g.options) == 2)
        game = Game(made, goal, tagger)
        route = agents.plan_route(game)
        assert route is not None
        without = tuple(
            action
            for action in route.actions
            if action.removeprefix("click[").removesuffix("]") not in set(dict(goal.options).values())
        )
        assert 0.0 < agents.play(game, without) < 1.0


ITEM = (
    "click[back to search]",
    "click[< prev]",
    "click[description]",
    "click[features]",
    "click[reviews]",
    "click[buy now]",
    "click[x | ]",
    "click[red]",
)


class TestView:
    def seen(
        self, style: str, lamps: Catalogue, tagger: Tagger, *actions: str, history: int = 2
    ) -> WebshopView:
        session = ShopSession(Game(lamps, GOAL, tagger), 15, 10.0)
        view = WebshopView(style=style, history=history)
        view.start(asyncio.run(session.reset()))
        for action in actions:
            view.observe(action, session.act(action))
        return view

    def test_paper(self, lamps: Catalogue, tagger: Tagger) -> None:
        view = self.seen("paper", lamps, tagger, "search[zzz]", "click[back to search]", "search[lamp]")
        (message,) = view.messages()
        lines = message["content"].split("\n")
        assert lines[0] == "You are shopping in the web shop WebShop. Your task is to: Find me a lamp"
        assert lines[1].startswith("You have taken 3 step(s) so far. Your last 2 observation(s)")
        assert (
            lines[2]
            == "[step 2] observation: Back to Search [SEP] Page 1 (Total results: 0) [SEP] Next > action: "
            "click[back to search]"
        )
        assert lines[3] == "[step 3] observation: WebShop [SEP] Search action: search[lamp]"
        assert lines[4].startswith(
            "You are now at step 4. Current observation: Back to Search [SEP] Page 1 (Total results: 3)"
        )
        assert lines[5].startswith(
            "Available actions: 'click[back to search]', 'click[next >]', 'click[b000000002]'"
        )
        assert "<think>" in lines[6] and "<action>" in lines[6]
        assert message["content"].count("Find me a lamp") == 1

    def test_start_of_the_paper_prompt(self, lamps: Catalogue, tagger: Tagger) -> None:
        text = self.seen("paper", lamps, tagger).messages()[0]["content"]
        assert (
            "Current observation: WebShop [SEP] Search\nAvailable actions: 'search[<your query>]'" in text
            and "so far" not in text
        )

    @pytest.mark.parametrize(
        ("answer", "action", "valid"),
        [
            ("<think>t</think><action>click[Red]</action>", "click[red]", True),
            ("<think>t</think><action> click[x |] </action>", "click[x | ]", True),
            ("<action>click[red]</action>", "click[red]", False),
            ("<think>t</think><action>click[green]</action>", "click[green]", False),
            ("<think>t</think><action>search[lamp]</action>", "search[lamp]", False),
            ("<think>t</think>click[red]", "<think>t</think>click red", False),
            ("<think>t</think><action>click[red]</action><action>click[red]</action>", None, False),
        ],
    )
    def test_parsing_on_an_item_page(self, answer: str, action: str | None, valid: bool) -> None:
        view = WebshopView(style="paper", history=2)
        view.start(EnvironmentState("WebShop [SEP] Instruction: [SEP] i [SEP] Search", ITEM))
        found, is_valid = view.parse(answer)
        assert is_valid == valid and (found == action if action is not None else "[" not in found)

    @pytest.mark.parametrize(
        "action",
        [
            "",
            "   ",
            "maybe</think>\n<action>search[lamp]",
            "maybe<action>search[lamp]",
            "search[lamp",
            "search[]",
            "lamp",
        ],
    )
    def test_an_action_that_the_shop_does_not_know_changes_nothing(
        self, action: str, lamps: Catalogue, tagger: Tagger
    ) -> None:
        session = ShopSession(Game(lamps, GOAL, tagger), 15, 10.0)
        before = asyncio.run(session.reset())
        after = session.act(action)
        assert after.admissible == before.admissible and not after.done and after.reward == 0.0
        assert after.observation == "WebShop [SEP] Search"
        assert session.act("search[lamp]").observation != after.observation

    @pytest.mark.parametrize(("query", "valid"), [("red lamp", True), ("<your query>", False)])
    def test_search_on_the_start_page(
        self, query: str, valid: bool, lamps: Catalogue, tagger: Tagger
    ) -> None:
        assert self.seen("paper", lamps, tagger).parse(
            f"<think></think><action>search[{query}]</action>"
        ) == (f"search[{query}]", valid)

    def test_compact(self, lamps: Catalogue, tagger: Tagger) -> None:
        view = self.seen(
            "compact", lamps, tagger, "search[lamp]", "click[b000000001]", "click[large]", "click[< prev]"
        )
        assert view.messages()[0]["content"] == (
            "task: find me a lamp\ndid: search lamp; open 2; choose large; prev\n"
            "now: page 1\n1 blue lamp $30.0 to $20.0\n2 red lamp $18.5\n3 old lamp $100.0"
        )
        view.observe("click[b000000001]", EnvironmentState(ITEM_PAGE, ITEM))
        assert view.messages()[0]["content"].endswith("now: color; red; red lamp; price: $18.5")

    def test_compact_commands(self, lamps: Catalogue, tagger: Tagger) -> None:
        view = self.seen("compact", lamps, tagger)
        assert view.parse("Search  red lamp") == ("search[red lamp]", True) and view.parse("buy")[1] is False
        view = self.seen("compact", lamps, tagger, "search[lamp]")
        assert (
            view.parse("open 2") == ("click[b000000001]", True)
            and view.parse("open 4")[1] is False
            and view.parse("next") == ("click[next >]", True)
        )
        assert view.parse("search x") == ("search[x]", False)
        view = self.seen("compact", lamps, tagger, "search[lamp]", "click[b000000001]")
        assert view.parse("choose red | blue") == ("click[red | blue]", True) and view.parse("buy") == (
            "click[buy now]",
            True,
        )

    @pytest.mark.parametrize("style", ["paper", "compact"])
    def test_shortening_ends(self, style: str, lamps: Catalogue, tagger: Tagger) -> None:
        view = self.seen(style, lamps, tagger, "search[lamp]", "click[b000000001]", "click[small]")
        lengths = [len(view.messages()[0]["content"])]
        while view.shorten():
            lengths.append(len(view.messages()[0]["content"]))
        assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) == len(lengths) >= 3
        if style == "paper":
            assert (
                "click[small]" not in view.messages()[0]["content"]
                and "'click[buy now]'" in view.messages()[0]["content"]
            )

    def test_the_anchor_is_the_page(self, lamps: Catalogue, tagger: Tagger) -> None:
        one = self.seen("paper", lamps, tagger, "search[lamp]", "click[next >]", "click[< prev]")
        assert one.anchor() == self.seen("paper", lamps, tagger, "search[lamp]").anchor()


ITEM_PAGE = (
    "Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] Red Lamp [SEP] Price: $18.5 [SEP] Rating: "
    "N.A. [SEP] Description [SEP] Features "
    "[SEP] Reviews [SEP] Buy Now"
)


@pytest.fixture
def paw(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["paw", "data", "webshop", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


class TestCommands:
    def test_replay(
        self, small: Catalogue, recorded: Path, tmp_path: Path, paw: Callable[..., tuple[int, str]]
    ) -> None:
        status, said = paw("replay", str(recorded / "transcripts.jsonl.gz"))
        assert (
            status == 0
            and "120 episodes on small" in said
            and "observation     1065 of    1065  100.00%" in said
        )
        (tmp_path / "t.jsonl").write_text(
            json.dumps({"goal_index": 0, "steps": [{"observation": "WebShop", "available": {}}]})
        )
        status, said = paw("replay", str(tmp_path / "t.jsonl"))
        assert (
            status == 1
            and "observation        0 of       1  0.00%" in said
            and "step 0, observation: recorded" in said
        )

    def test_verify_list_and_mistakes(self, small: Catalogue, paw: Callable[..., tuple[int, str]]) -> None:
        status, said = paw("verify", "--set", "small")
        assert status == 0 and "1,000 products, 6,910 synthetic and 13 human goals" in said
        status, said = paw("list", "test", "--set", "small")
        assert status == 0 and said.count("\n") == 500
        assert paw("list", "test", "--set", "tiny")[0] == 2 and paw("list", "valid")[0] == 2


def test_tasks_come_from_one_place(made: Catalogue) -> None:
    bench = shop(made)
    tasks = bench.tasks("test")
    assert isinstance(tasks[0], Task) and [task.source for task in tasks[:3]] == ["0", "1", "2"]
    assert isinstance(EnvSection(name="webshop").webshop.num_products, type(None))
