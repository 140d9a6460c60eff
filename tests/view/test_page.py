"""The page in a real browser: it opens, filters, walks with the keyboard, compares two runs; hostile text
stays text; no request leaves it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from paw_hpc.study.view.library import Library
from paw_hpc.study.view.server import PageServer
from paw_hpc.study.view.single import write_page
from tests.view.conftest import ATTACKS

WIDE, NARROW = {"width": 1200, "height": 800}, {"width": 360, "height": 740}


@dataclass
class Opened:
    """A page that was opened, and what it did."""

    page: Any
    address: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def press(self, *keys: str) -> None:
        for key in keys:
            before = self.page.evaluate("document.documentElement.dataset.turns ?? null")
            self.page.keyboard.press(key)
            self.settled(before)

    def settled(self, before: str | None) -> None:
        self.page.wait_for_function(
            "(before) => (document.documentElement.dataset.turns ?? null) !== before",
            arg=before,
            timeout=20_000,
        )

    def choose(self, control: str, value: str | bool) -> None:
        before = self.page.evaluate("document.documentElement.dataset.turns ?? null")
        if isinstance(value, bool):
            self.page.set_checked(control, value)
        elif control == "#text":
            self.page.fill(control, value)
            self.page.keyboard.press("Tab")
        else:
            self.page.select_option(control, value)
        self.settled(before)

    @property
    def place(self) -> dict[str, str]:
        """What the address says."""
        return {key: values[0] for key, values in parse_qs(urlsplit(self.page.url).fragment).items()}

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()


@pytest.fixture(params=["served", "file"])
def opened(
    request: pytest.FixtureRequest, browser: Any, runs: list[Path], tmp_path: Path
) -> Iterator[Opened]:
    """The two made runs, served and as one file: they must behave alike."""
    yield from open_page(browser, runs, tmp_path, request.param)


def open_page(browser: Any, runs: list[Path], folder: Path, how: str, fragment: str = "") -> Iterator[Opened]:
    library = Library(runs)
    with PageServer(library) as server:
        if how == "file":
            write_page(library, folder / "page.html")
        address = server.address if how == "served" else (folder / "page.html").as_uri()
        context = browser.new_context(viewport=WIDE)
        found = Opened(context.new_page(), address)
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on(
            "console",
            lambda message: (
                found.errors.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        found.page.goto(address + fragment)
        found.settled(None)
        yield found
        context.close()


def test_it_opens_at_the_newest_update_and_walks_with_the_keyboard(opened: Opened) -> None:
    assert opened.place | {"run": "paw", "file": "update_000002", "step": "0"} == opened.place
    first = opened.place
    opened.press("l")
    assert (opened.place["group"], opened.place["member"]) != (first["group"], first["member"])
    opened.press("h", "[")
    assert opened.place["file"] == "update_000001"
    opened.choose("#order", "steps")  # the longest first
    opened.press("]", "h")
    steps = len(opened.texts("ol.steps > li"))
    opened.press("j")
    assert opened.place["step"] == ("1" if steps > 1 else "0")
    assert opened.page.locator("li[aria-current=true] .detail").count() == 1
    opened.press("p")
    assert opened.page.locator("details.prompt").get_attribute("open") is not None
    opened.press("g")
    assert opened.page.locator("#place table th").count() >= 3 and opened.place["view"] == "group"
    opened.press("g", "s")
    assert opened.page.locator("#place table tr").count() > 3
    opened.page.locator("#place table button").first.click()
    opened.page.wait_for_selector(".t.at")
    opened.page.keyboard.press("?")
    assert opened.page.locator("#help").evaluate("(dialog) => dialog.open")
    assert opened.errors == []


def test_tokens_are_coloured_by_probability_and_the_least_probable_come_first(
    opened: Opened, runs: list[Path]
) -> None:
    library = Library(runs)
    place = library.file("paw", "update_000002").surprises[0]
    step = library.steps("paw", "update_000002", place["group"], place["member"])[place["step"]]
    before = opened.page.evaluate("document.documentElement.dataset.turns")
    opened.page.evaluate(
        "(place) => { location.hash = place }",
        f"group={place['group']}&member={place['member']}&step={place['step']}",
    )
    opened.settled(before)
    shown = opened.page.locator("li[aria-current=true] .detail > .tokens").nth(1).locator(".t")
    classes = [shown.nth(n).get_attribute("class").split() for n in range(shown.count())]
    bounds = ((0.01, "s4"), (0.05, "s3"), (0.2, "s2"), (0.5, "s1"))
    for p, silenced, found in zip(step["observation_p"], step["silenced"], classes, strict=True):
        assert next((name for bound, name in bounds if p < bound), None) == next(
            (name for name in found if name in ("s1", "s2", "s3", "s4")), None
        )
        assert bool(silenced) == ("silenced" in found)
    titles = [
        float(t.get_attribute("title").split()[1].rstrip(",")) for t in opened.page.locator(".least .t").all()
    ]
    assert titles == pytest.approx(sorted(step["observation_p"])[: len(titles)], rel=0.05)
    colours = [
        shown.nth(n).evaluate("(t) => getComputedStyle(t).backgroundColor") for n in range(shown.count())
    ]
    assert len(set(colours)) > 1, "the style sheet is not applied"


def test_filters_leave_what_is_asked_for(opened: Opened, runs: list[Path]) -> None:
    episodes = Library(runs).episodes("paw", "update_000002")

    def shown() -> int:
        return opened.page.locator("#groups .chip").count()

    assert shown() == len(episodes)
    opened.choose("#outcome", "failure")
    assert shown() == sum(not e["success"] for e in episodes) < len(episodes)
    opened.choose("#outcome", "")
    opened.choose("#invalid", True)
    assert shown() == sum(e["invalid"] > 0 for e in episodes)
    opened.choose("#invalid", False)
    opened.choose("#selected", True)
    assert shown() == sum(bool(e["selected"]) for e in episodes)
    opened.choose("#selected", False)
    text = "".join(
        Library(runs).steps("paw", "update_000002", episodes[0]["group"], episodes[0]["member"])[0][
            "observation"
        ]
    )[:6]
    hits = {(group, member) for group, member, _ in Library(runs).file("paw", "update_000002").search(text)}
    opened.choose("#text", text)
    assert shown() == len(hits) and (episodes[0]["group"], episodes[0]["member"]) in hits
    opened.choose("#text", "no such text anywhere")
    assert shown() == 0 and "No kept episode" in opened.page.inner_text("#place")
    assert opened.errors == []


def test_two_runs_beside_each_other_and_an_address_that_names_the_place(opened: Opened, browser: Any) -> None:
    opened.press("c")
    assert "same seed" in opened.texts("#beside option:checked")[0]
    titles = opened.texts("article h2")
    assert len(titles) == 2 and titles[0].startswith("paw ·") and titles[1].startswith("vanilla ·")
    assert titles[0].removeprefix("paw") == titles[1].removeprefix("vanilla"), (
        "the same update, group and member"
    )
    actions = opened.texts("article:first-child .action"), opened.texts("article:last-child .action")
    assert actions[0] == actions[1]
    again = browser.new_page()
    again.goto(opened.page.url)
    again.wait_for_function("() => document.documentElement.dataset.turns !== undefined")
    assert again.locator("article h2").all_inner_texts() == titles
    again.close()
    for _ in range(opened.page.locator("#beside option").count() - 1):
        opened.press("c")
    assert "beside" not in opened.place and len(opened.texts("article h2")) == 1


@pytest.mark.parametrize("how", ["served", "file"])
def test_hostile_text_is_text_and_nothing_leaves_the_page(
    how: str, browser: Any, hostile: Path, tmp_path: Path
) -> None:
    for opened in open_page(browser, [hostile], tmp_path, how):
        page = opened.page
        for keys in (["j"], ["p"], ["g"], ["g", "s"], ["s", "l"]):
            opened.press(*keys)
            assert page.evaluate("window.hacked") is None
            text = page.inner_text("body")
            assert ATTACKS[0] in text
        assert all(attack in page.inner_text("#place") for attack in ATTACKS)
        assert hostile.name in page.inner_text("body"), "the run's own name"
        assert (
            page.locator(
                "iframe, svg, #place script, #place img, #place style, #groups script, #groups img"
            ).count()
            == 0
        )
        opened.choose("#text", ATTACKS[1])
        assert page.locator("#groups .chip").count() > 0 and page.evaluate("window.hacked") is None
        root = opened.address.rpartition("/")[0] + "/"
        assert opened.requests and all(request.startswith(root) for request in opened.requests), (
            opened.requests
        )
        assert opened.errors == []
        # The policy itself, should the page ever make markup of text: neither a script, nor a handler, nor a
        # request.
        assert "TrustedHTML" in page.evaluate(
            "(attack) => { try { document.body.innerHTML = attack } catch (error) { return error.message } }",
            ATTACKS[1],
        )
        assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'left', () => 'kept')") == "kept"
        added = (
            "() => { const made = document.createElement('img'); made.src = 'http://127.0.0.1:9/x'; "
            "document.body.append(made) }"
        )
        page.evaluate(added)
        page.wait_for_timeout(100)
        assert sum("Content Security Policy" in error for error in opened.errors) >= 2, opened.errors


def test_the_attacks_are_attacks(browser: Any) -> None:
    """The control: as markup, on a page without a policy, they run."""
    page = browser.new_page()
    for attack in ATTACKS[:5]:
        page.goto("about:blank")
        page.set_content(f"<pre><div>{attack}</div></pre>")
        page.wait_for_timeout(50)
        assert page.evaluate("window.hacked") == 1, attack
    page.close()


def test_narrow_and_dark(opened: Opened) -> None:
    page = opened.page
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    for view in ([], ["g"], ["g", "c"]):
        opened.press(*view)
        for size in (NARROW, WIDE):
            page.set_viewport_size(size)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (view, size)


def test_a_narrow_page_opens_at_its_top_and_its_columns_hold_words(
    browser: Any, many: Path, tmp_path: Path
) -> None:
    for opened in open_page(browser, [many], tmp_path, "served"):
        page = opened.page
        page.set_viewport_size({"width": 360, "height": 400})
        page.reload()
        page.wait_for_selector("li[aria-current=true] .detail")
        page.wait_for_timeout(200)
        assert page.evaluate("window.scrollY") == 0
        opened.press("j")
        assert page.evaluate("window.scrollY") > 0, "a step that is walked to is shown"
        opened.press("g")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert (
            page.evaluate(
                "Math.min(...[...document.querySelectorAll('table td:nth-child(n+2)')].map((cell) => "
                "cell.clientWidth))"
            )
            >= 90
        )


def test_a_hundred_thousand_steps(browser: Any, many: Path, tmp_path: Path) -> None:
    for opened in open_page(browser, [many], tmp_path, "served"):
        assert "100000 steps" in opened.page.inner_text("#count")
        assert 0 < opened.page.locator("#groups .chip").count() <= 1000, "a page of groups at a time"
        opened.page.get_by_role("button", name="→").click()
        opened.page.wait_for_function("() => location.hash.includes('page=1')")
        opened.press("l", "j")
        assert opened.page.evaluate("document.querySelectorAll('*').length") < 20_000
        assert opened.errors == []


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One evaluation of 100,000 steps: 1,000 tasks of 4 episodes of 25 steps."""
    import numpy as np
    import pyarrow as pa

    from paw_hpc.evaluation.episodes.folder import EpisodeFolder
    from tests.episodes import made

    run = tmp_path_factory.mktemp("many") / "many"
    rows = made.rows(max_steps=5)
    table = rows.take(pa.array(np.resize(np.arange(rows.num_rows), 100_000)))
    places = {
        "group": np.arange(100_000) // 100,
        "member": np.arange(100_000) // 25 % 4,
        "step": np.arange(100_000) % 25,
    }
    for name, values in places.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(name), pa.array(values.astype(np.int32)))
    at = table.schema.get_field_index("steps")
    table = table.set_column(at, table.schema.field("steps"), pa.array(np.full(100_000, 25, dtype=np.int32)))
    EpisodeFolder(run, made.ALL).write_evaluation(0, "many", table)
    return run
