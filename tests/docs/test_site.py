"""The documentation builds strictly into a site that asks nobody else for anything, and whose links lead
somewhere."""

from __future__ import annotations

import re
import tomllib
from contextlib import nullcontext
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.docs.pages import classes, references
from tests.recipe_values import leaves
from website import build
from website.keys import tables

# What the theme's script fetches from elsewhere, it fetches for these; no page has one.
FETCHING = {"mermaid", "glightbox", "pyodide", "asciinema"}


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.stage(tmp_path_factory.mktemp("website") / "staged")


@pytest.fixture(scope="module")
def site(staged: Path) -> Path:
    return build.render(staged)


def test_every_page_of_the_navigation_is_there(site: Path) -> None:
    assert (
        (site / "index.html").is_file()
        and (site / "search.json").is_file()
        and len(list(site.rglob("*.html"))) > 10
    )


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    found = list(references(site))
    assert sum(one.loaded for one in found) > 100, "the check sees scripts, styles and images at all"
    assert [one for one in found if one.loaded and one.foreign] == []
    assert [(page.name, used) for page in site.rglob("*.html") if (used := FETCHING & classes(page))] == []


def test_what_is_loaded_from_elsewhere_would_be_seen(tmp_path: Path) -> None:
    """The control of the test above."""
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="https://a.example/x.css"><link rel="preconnect" '
        'href="https://b.example">'
        '<script src="//c.example/x.js"></script>'
        '<img src="http://d.example/x.png"><style>@import url(https://e.example/x.css);</style><p '
        "style=\"background: url('https://f.example/x')\">"
        '<a href="https://fine.example">a link is no asset</a><img src="x.png"><div '
        'class="mermaid">graph</div>'
    )
    (tmp_path / "a.css").write_text('@font-face { src: url("https://g.example/font.woff2") }')
    hosts = {one.target.split("//")[1][0] for one in references(tmp_path) if one.loaded and one.foreign}
    assert hosts == set("abcdefg") and classes(tmp_path / "a.html") & FETCHING == {"mermaid"}


def test_every_link_leads_to_a_file_of_the_site(site: Path) -> None:
    broken = [
        (one.page.name, one.target)
        for one in references(site)
        if (file := one.file(site)) is not None and not file.exists()
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("[there](b.md#there), ::: is words\n\n::: paw_hpc.system.errors\n", True),
        ("[gone](gone.md)", False),
        ("[nowhere](b.md#nowhere)", False),
        ("::: paw_hpc.no.such.module", False),
        ("[paw_hpc.loop.no_such][]", False),
    ],
)
def test_a_broken_page_ends_the_build(tmp_path: Path, text: str, fine: bool) -> None:
    """The control: strict means strict, for links, anchors and objects."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A\n\n{text}\n")
    (tmp_path / "docs" / "b.md").write_text("# B\n\n## There\n")
    settings = (build.HERE / "zensical.toml").read_text()
    (tmp_path / "zensical.toml").write_text(re.sub(r"(?ms)^nav = \[.*?^\]$", "", settings))
    with nullcontext() if fine else pytest.raises(SystemExit):
        build.render(tmp_path)


def test_links_to_the_repository_lead_to_pages_that_show_its_files(tmp_path: Path) -> None:
    docs, code = tmp_path / "docs", tmp_path / "code"
    docs.mkdir(), code.mkdir()
    code_block = "\n    [e](../code/a.py)\n"
    (docs / "index.md").write_text(
        "[a](../code/a.py), [b](../code/b.md#part), [c](../code), [d](https://d.example), "
        f"[two\nlines](../code/a.py)\n{code_block}"
    )
    (code / "a.py").write_text('"""Says ```."""\n')
    (code / "b.md").write_text("# B\n\n## Part\n\n[back](../docs/index.md)\n")
    build.Stage(tmp_path, tmp_path / "out").run()
    page = (tmp_path / "out" / "index.md").read_text()
    links = (
        "[a](repository/code/a.py.md), [b](repository/code/b.md#part), c, [d](https://d.example), "
        "[two\nlines](repository/code/a.py.md)\n"
    )
    assert page == links + code_block
    assert (
        '````python\n"""Says ```."""\n````'
        in (tmp_path / "out" / "repository" / "code" / "a.py.md").read_text()
    )
    assert "[back](../../index.md)" in (tmp_path / "out" / "repository" / "code" / "b.md").read_text()


def test_a_link_to_no_file_of_the_repository_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("![a](../gone.png)")
    with pytest.raises(SystemExit, match=r"docs/index\.md: links to \.\./gone\.png, which does not exist"):
        build.Stage(tmp_path, tmp_path / "out").run()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md"])
def test_examples_of_code_are_the_code(page: str) -> None:
    """A page that shows code of this repository shows it as it is."""
    shown = re.findall(r"^```python\n(.*?)^```$", (build.ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    there = [
        path.read_text() for folder in ("paw_hpc", "tests") for path in (build.ROOT / folder).rglob("*.py")
    ]
    assert shown and [text for text in shown if not any(text in code for code in there)] == []


def test_every_key_of_a_recipe_is_on_its_page(site: Path) -> None:
    page = (site / "api" / "recipe.html").read_text()
    keys = [key for key, _ in leaves()]
    assert tables().keys() == {key.rpartition(".")[0] or "recipe" for key in keys}
    for key in keys:
        section, _, name = key.rpartition(".")
        assert f"| `{name}` |" in tables()[section or "recipe"] and f"<code>{name}</code>" in page, key


def test_every_page_of_docs_is_in_the_navigation(site: Path) -> None:
    nav = tomllib.loads((build.HERE / "zensical.toml").read_text())["project"]["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", str(nav)))
    assert listed == {
        page for source, page in build.Stage(build.ROOT, site).pages.items() if source.endswith(".md")
    }


def test_figures_are_drawings_that_say_what_they_show() -> None:
    figures = sorted((build.ROOT / "docs" / "figures").glob("*.svg"))
    styles, pages = set(), " ".join(path.read_text() for path in (build.ROOT / "docs").rglob("*.md"))
    for path in figures:
        root = ElementTree.parse(path).getroot()
        found = {
            name: root.findtext(f"{{http://www.w3.org/2000/svg}}{name}")
            for name in ("title", "desc", "style")
        }
        assert found["title"] and found["desc"] and f"figures/{path.name})" in pages, path.name
        styles.add(found["style"])
    assert len(figures) > 8 and len(styles) == 1 and "prefers-color-scheme: dark" in str(styles.pop())
