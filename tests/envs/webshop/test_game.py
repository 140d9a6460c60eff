"""Pages and navigation, on a handful of products, literally."""

from __future__ import annotations

import pytest

from paw_hpc.envs.webshop.catalogue import Catalogue
from paw_hpc.envs.webshop.game import Game
from paw_hpc.envs.webshop.goals import Goal
from paw_hpc.envs.webshop.reward import Tagger

GOAL = Goal(
    "B000000001",
    "garden",
    "lamps",
    "Red Lamp",
    "Home › Light › Lamps",
    "Find me a lamp",
    ("bright",),
    40.0,
    {"color": "red | blue"},
    1.0,
)
HEADER = "Instruction: [SEP] Find me a lamp [SEP] Back to Search"
RESULTS = f"{HEADER} [SEP] Page 1 (Total results: 3) [SEP] Next >"


@pytest.fixture
def game(lamps: Catalogue, tagger: Tagger) -> Game:
    return Game(lamps, GOAL, tagger)


def after(game: Game, *actions: str) -> str:
    for action in actions:
        game.step(action)
    return game.observation


class TestPages:
    def test_start(self, game: Game) -> None:
        assert game.observation == "WebShop [SEP] Instruction: [SEP] Find me a lamp [SEP] Search"
        assert game.available.has_search_bar and game.available.clickables == ("search",)

    def test_results(self, game: Game) -> None:
        """A range in the order of the file; the default price; a title stripped."""
        assert after(game, "search[lamp]") == (
            f"{RESULTS} [SEP] B000000002 [SEP] Blue Lamp [SEP] $30.0 to $20.0 [SEP] B000000001 [SEP] Red "
            "Lamp [SEP] $18.5 [SEP] "
            "B000000003 [SEP] Old lamp [SEP] $100.0"
        )
        assert game.available.clickables == (
            "back to search",
            "next >",
            "b000000002",
            "b000000001",
            "b000000003",
        )
        assert not game.available.has_search_bar

    def test_item(self, game: Game) -> None:
        assert after(game, "search[lamp]", "click[b000000001]") == (
            f"{HEADER} [SEP] < Prev [SEP] size [SEP] small [SEP] large [SEP] color [SEP] red | blue [SEP] "
            "<sand> 'x' [SEP] Red Lamp [SEP] "
            "Price: $18.5 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
        )
        fixed = ("back to search", "< prev", "description", "features", "reviews", "buy now")
        assert game.available.clickables == (*fixed, "small", "large", "red | blue", "<sand> 'x'")

    def test_a_value_of_two_options_is_one_key_and_means_the_last(self, game: Game) -> None:
        page = after(game, "search[lamp]", "click[b000000003]")
        assert "kind [SEP] a [SEP] b [SEP] a [SEP] sort [SEP] b [SEP] Old lamp" in page
        assert game.available.clickables[6:] == ("a", "b")
        after(game, "click[b]")
        assert game.chosen == {"sort": "b"}

    def test_sub_pages(self, game: Game) -> None:
        after(game, "search[lamp]", "click[b000000001]")
        assert after(game, "click[description]") == f"{HEADER} [SEP] < Prev [SEP] A lamp."
        assert game.available.clickables == ("back to search", "< prev")
        assert (
            after(game, "click[< prev]", "click[features]")
            == f"{HEADER} [SEP] < Prev [SEP] Bright & warm [SEP] Steel\nfoot"
        )
        assert after(game, "click[< prev]", "click[reviews]") == f"{HEADER} [SEP] < Prev"

    def test_empty_texts(self, game: Game) -> None:
        """No description is no entry; an empty bullet is an empty one."""
        after(game, "search[lamp]", "click[b000000002]")
        assert after(game, "click[description]") == f"{HEADER} [SEP] < Prev"
        assert after(game, "click[< prev]", "click[features]") == f"{HEADER} [SEP] < Prev [SEP] "

    def test_done(self, game: Game) -> None:
        after(game, "search[lamp]", "click[b000000001]", "click[small]", "click[<sand> 'x']")
        observation, reward, done = game.step("click[Buy Now]")
        assert done and reward == pytest.approx(2 / 3)
        assert observation == (
            "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk "
            "interface.) [SEP] Purchased [SEP] asin [SEP] "
            'B000000001 [SEP] options [SEP] {"color": "\\u003csand\\u003e \\u0027x\\u0027", "size": '
            '"small"} [SEP] attrs [SEP] None [SEP] category '
            "[SEP] None [SEP] query [SEP] None [SEP] product category [SEP] None [SEP] Target [SEP] asin "
            "[SEP] options [SEP] attrs [SEP] price upper "
            "[SEP] instuction text [SEP] category [SEP] product category [SEP] query [SEP] Goal [SEP] None "
            "[SEP] Reward [SEP] Your score "
            "(min 0.0, max 1.0) [SEP] 0.6666666666666666 [SEP] Reward Details [SEP] None"
        )
        assert game.available.clickables == () and not game.available.has_search_bar


class TestNavigation:
    def test_search_works_on_every_page_and_clears_the_choice(self, game: Game) -> None:
        for before in (
            [],
            ["click[b000000001]"],
            ["click[b000000001]", "click[features]"],
            ["click[b000000001]", "click[buy now]"],
        ):
            after(game, "search[lamp]", *before, "click[large]")
            observation, reward, done = game.step("search[LAMP]")
            assert observation.startswith(RESULTS) and (reward, done) == (0.0, False) and game.chosen == {}

    def test_pages_have_no_end(self, game: Game) -> None:
        assert after(game, "search[candle]").startswith(
            f"{HEADER} [SEP] Page 1 (Total results: 25) [SEP] Next > [SEP] B000000100 [SEP] Candle 0"
        )
        assert after(game, "click[next >]", "click[next >]").count("Candle") == 5
        assert (
            after(game, "click[next >]")
            == f"{HEADER} [SEP] Page 4 (Total results: 25) [SEP] < Prev [SEP] Next >"
        )
        assert game.available.clickables == ("back to search", "< prev", "next >")
        assert "Page 3 " in after(game, "click[< prev]")

    def test_back_from_an_item_to_its_page_of_results(self, game: Game) -> None:
        after(game, "search[candle]", "click[next >]", "click[b000000110]")
        assert "Page 2 " in after(game, "click[< prev]")

    def test_options_replace_each_other_and_outlive_sub_pages_alone(self, game: Game) -> None:
        after(
            game,
            "search[lamp]",
            "click[b000000001]",
            "click[small]",
            "click[LARGE]",
            "click[large]",
            "click[features]",
            "click[< prev]",
        )
        assert game.chosen == {"size": "large"}
        after(game, "click[< prev]")
        assert game.chosen == {}

    def test_no_hits(self, game: Game) -> None:
        assert after(game, "search[zzz]") == f"{HEADER} [SEP] Page 1 (Total results: 0) [SEP] Next >"
        assert after(game, "search[the of]") == f"{HEADER} [SEP] Page 1 (Total results: 0) [SEP] Next >"

    @pytest.mark.parametrize(
        "action",
        ["", "buy", "click[]", "search[]", "click[search]", "Search[lamp]", " search[lamp]", "search[a[b]", "click[b000000009]",
         "click[ back to search]", "search[x\ny]", "search[<a> x]", "search[<c>]", "think[hm]"],
    )  # fmt: skip
    def test_what_means_nothing_changes_nothing(self, action: str, game: Game) -> None:
        for before in ([], ["search[lamp]"], ["click[b000000001]"]):
            shown = after(game, *before)
            assert game.step(action) == (shown, 0.0, False)

    @pytest.mark.parametrize("action", ["search[lamp]!", "search[lamp]] x", "x search[lamp]"])
    def test_what_follows_the_last_bracket_is_ignored(self, action: str, game: Game) -> None:
        expected = {"search[lamp]!": True, "search[lamp]] x": True, "x search[lamp]": False}[action]
        assert ("Page 1" in after(game, action)) == expected

    def test_special_searches(self, game: Game) -> None:
        assert "(Total results: 3)" in after(game, "search[<c> garden]")
        assert "(Total results: 25)" in after(game, "search[<q> candles]")
        assert "(Total results: 0)" in after(game, "search[<q> candles x]")
        first, second = after(game, "search[<r>]"), after(game, "click[next >]")
        assert "(Total results: 28)" in first and "Page 2 (Total results: 28)" in second

    def test_keywords_that_name_a_page_confuse_the_way_back(self, game: Game) -> None:
        """The original looks for the page's name in the whole URL, in which the keywords stand too."""
        after(game, "search[lamp search_results]", "click[b000000001]", "click[features]")
        assert after(game, "click[< prev]") == f"{HEADER} [SEP] Page 0 (Total results: 3) [SEP] Next >"
        after(game, "search[lamp item_page]", "click[b000000001]", "click[features]")
        assert after(game, "click[< prev]").startswith(RESULTS)
        after(game, "search[lamp item_page]", "click[b000000001]")
        assert after(game, "click[< prev]").startswith(RESULTS)
