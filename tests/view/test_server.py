"""Who may ask the page's server, and what it says to others; the page as one file."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from urllib.parse import urlencode

import pytest

from paw_hpc.study.view import assets
from paw_hpc.study.view.library import Library
from paw_hpc.study.view.server import PageServer
from paw_hpc.study.view.single import write_page
from paw_hpc.system.errors import DataError
from tests.view.conftest import ATTACKS


def get(server: PageServer, path: str, host: str | None = None) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(server.host, timeout=20)
    connection.request("GET", path, headers={"Host": host or server.host})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def test_only_who_knows_the_address_is_answered(runs: list[Path]) -> None:
    with PageServer(Library(runs)) as server, PageServer(Library(runs)) as other:
        token = server.address.split("/")[3]
        assert (
            server.address.startswith("http://127.0.0.1:")
            and len(token) >= 32
            and token != other.address.split("/")[3]
        )
        assert get(server, f"/{token}/")[0] == 200 and get(server, f"/{token}/index")[0] == 200
        for path in (
            "/",
            "/index",
            f"/{token[:-1]}/index",
            f"/{token}x/index",
            "//index",
            f"/{token}",
            f"/{token}/../index",
            f"/{token}/nothing",
        ):
            status, _, said = get(server, path)
            assert status in (400, 403) and token not in said, path
        assert get(server, f"/{token}/index", host="evil.example")[0] == 403, (
            "a name that was bound to this address again"
        )
        assert get(server, f"/{token}/index", host=f"localhost:{server.host.split(':')[1]}")[0] == 403


def test_every_answer_carries_the_policy(runs: list[Path]) -> None:
    with PageServer(Library(runs)) as server:
        token = server.address.split("/")[3]
        for name in ("", "page.js", "page.css", "index", "nothing"):
            _, headers, _ = get(server, f"/{token}/{name}")
            policy = headers["Content-Security-Policy"]
            assert (
                policy.startswith("default-src 'none'; script-src 'self';")
                and "unsafe" not in policy
                and "require-trusted-types-for" in policy
            )
            assert (
                headers["X-Content-Type-Options"],
                headers["Referrer-Policy"],
                headers["Cache-Control"],
            ) == ("nosniff", "no-referrer", "no-store")


def test_what_the_page_asks_is_answered_and_what_is_not_there_is_said(runs: list[Path]) -> None:
    with PageServer(Library(runs)) as server:
        token = server.address.split("/")[3]

        def ask(name: str, **question: object) -> tuple[int, str]:
            status, _, said = get(server, f"/{token}/{name}?{urlencode(question)}")
            return status, said

        status, said = ask("index")
        assert status == 200 and [run["name"] for run in json.loads(said)] == ["paw", "vanilla"]
        [first, *_] = json.loads(ask("episodes", run="paw", file="update_000001")[1])
        status, said = ask(
            "steps", run="paw", file="update_000001", group=first["group"], member=first["member"]
        )
        assert status == 200 and len(json.loads(said)) == first["steps"]
        assert ask("steps", run="paw", file="update_000001", group=99, member=0)[0] == 404
        assert (
            ask("episodes", run="paw", file="../../etc/passwd")[0] == 404
            and ask("episodes", run="/etc", file="update_000001")[0] == 404
        )
        assert (
            ask("steps", run="paw")[0] == 400
            and ask("steps", run="paw", file="update_000001", group="x", member=0)[0] == 400
        )


def test_the_file_holds_no_text_of_an_episode_as_it_is_and_asks_nobody(hostile: Path, tmp_path: Path) -> None:
    said = write_page(Library([hostile]), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "episodes" in said and not any(attack in text for attack in ATTACKS)
    assert text.count("<script") == text.count("</script>") == 3, "index, one file, the page's own"
    for elsewhere in ("http://", "https://", " src=", "@import", "url("):
        assert elsewhere not in assets.script() + assets.style() + assets.document("", "")
    assert assets.digest(assets.script()) in text.replace("&#x27;", "'") and "unsafe" not in text


def test_a_file_of_some_updates(runs: list[Path], tmp_path: Path) -> None:
    write_page(Library(runs), tmp_path / "all.html")
    write_page(Library(runs), tmp_path / "one.html", [1])
    assert (tmp_path / "one.html").stat().st_size < (tmp_path / "all.html").stat().st_size
    with pytest.raises(DataError, match="nothing is kept of update 7; there are 0, 1, 2"):
        write_page(Library(runs), tmp_path / "none.html", [7])
    assert not (tmp_path / "none.html").exists()


def test_a_folder_without_kept_episodes_is_refused(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none", "no such folder"), (tmp_path, "nothing is kept")):
        with pytest.raises(DataError, match=said) as caught:
            Library([path])
        assert "episodes.groups" in str(caught.value)


def test_the_page_makes_no_markup_of_strings() -> None:
    script = assets.script()
    for dangerous in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        'setTimeout("',
        ".srcdoc",
    ):
        assert dangerous not in script
    assert all(
        len((assets.FOLDER / name).read_text().splitlines()) < 350
        for name in (*assets.SCRIPTS, "page.css", "page.html")
    )
