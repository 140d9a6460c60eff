"""Reading WebShop's files: the rules, in a stream, and one line for whatever is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs.webshop import data, source
from paw_hpc.envs.webshop.catalogue import Files, open_catalogue
from paw_hpc.envs.webshop.source import read_products
from paw_hpc.system.errors import DataError
from tests.envs.webshop.conftest import LAMP_ATTRIBUTES, LAMPS, WriteFiles, entry, options


def products(path: Path, content: Any, **arguments: Any) -> list[source.Product]:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return list(read_products(path, LAMP_ATTRIBUTES, **arguments))


class TestRules:
    def test_what_is_skipped(self, tmp_path: Path) -> None:
        """nan, longer ids, repeated ones; the cut counts entries before that."""
        listed = [
            entry("nan", "x"),
            entry("B0000000012", "x"),
            *LAMPS[:2],
            entry("B000000001", "again"),
            LAMPS[2],
        ]
        assert [p.asin for p in products(tmp_path / "p", listed)] == [
            "B000000001",
            "B000000002",
            "B000000003",
        ]
        assert [p.asin for p in products(tmp_path / "p", listed, num_products=3)] == ["B000000001"]

    @pytest.mark.parametrize(
        ("pricing", "prices", "tag"),
        [
            ("$18.50", (18.5,), "$18.5"),
            ("$1,200.00", (1200.0,), "$1200.0"),
            ("$3.78$11.38", (3.78, 11.38), "$3.78 to $11.38"),
            ("from $9 to $5.5, or $1", (9.0, 5.5), "$9.0 to $5.5"),
            ("", (100.0,), "$100.0"),
            (None, (100.0,), "$100.0"),
        ],
    )
    def test_prices(self, pricing: str | None, prices: tuple[float, ...], tag: str, tmp_path: Path) -> None:
        found = products(tmp_path / "p", [entry("B1", "x", pricing=pricing), LAMPS[0]])[0]
        assert (found.prices, found.price_tag) == (prices, tag)

    def test_options_attributes_and_what_is_indexed(self, tmp_path: Path) -> None:
        lamp, unknown = products(
            tmp_path / "p", [LAMPS[0], entry("B9", "X", customization_options=options(A=[" b "]))]
        )
        assert lamp.options == {"size": ("small", "large"), "color": ("red | blue", "<sand> 'x'")}
        assert (
            lamp.document
            == "red lamp a lamp. bright & warm  size: small, large, and color: red | blue, <sand> 'x'"
        )
        assert (lamp.query, lamp.attributes, unknown.attributes, unknown.options) == (
            "lamps",
            ("easy clean",),
            ("DUMMY_ATTR",),
            {"a": ("b",)},
        )

    @pytest.mark.parametrize("block", [1, 7, 1000])
    def test_the_stream_does_not_see_its_blocks(
        self, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = products(tmp_path / "p", LAMPS)
        monkeypatch.setattr(source, "_BLOCK", block)
        assert products(tmp_path / "p", json.dumps(LAMPS, indent=2, ensure_ascii=False)) == whole
        assert len(whole) == len(LAMPS)


class TestBadInput:
    @pytest.mark.parametrize("block", [1, 1 << 22])
    def test_what_is_left_alone(self, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A byte order mark, empty lines at the end, and half a character where nothing is read."""
        whole = products(tmp_path / "p", LAMPS)
        monkeypatch.setattr(source, "_BLOCK", block)
        assert products(tmp_path / "p", "\ufeff" + json.dumps(LAMPS) + "\n \n") == whole
        assert products(tmp_path / "p", [{**lamp, "reviews": "\ud83d"} for lamp in LAMPS]) == whole

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "not a list of products"),
            ('{"a": 1}', "not a list of products"),
            ("[]", "no product in it"),
            (json.dumps(LAMPS)[:-40], "truncated"),
            (json.dumps(LAMPS)[:-1], "truncated"),
            ("[1, 2]", "truncated, or not JSON"),
            (json.dumps(LAMPS) + "]", r"']' stands behind the end of its list"),
            (json.dumps(LAMPS) + " \n" * 50 + json.dumps(LAMPS), r"'\[{.*stands behind the end of its list"),
            (
                json.dumps([entry("B1", "Lamp \ud83d")]),
                r"entry 1 .*name holds half a character, \\ud83d, at character 6",
            ),
            (
                json.dumps([*LAMPS[:1], entry("B1", "x", small_description=["a", "\udc00"])]),
                r"entry 2 .*small_description\[1\] holds half a",
            ),
            (
                json.dumps([entry("B1", "x", customization_options=options(Size=["\udc00"]))]),
                r"entry 1 .*customization_options.Size\[0\].value holds",
            ),
            ('[{"asin": "B1"}]', "entry 1 is not a WebShop product"),
            (json.dumps([*LAMPS[:1], entry("B1", None)]), "entry 2 .*name is null, expected text"),  # type: ignore[arg-type]
            (
                json.dumps([entry("B1", "x", full_description=None)]),
                "entry 1 .*full_description is null, expected text",
            ),
            (
                json.dumps([entry("B1", "x", small_description=None)]),
                "entry 1 .*small_description is null, expected text",
            ),
            (
                json.dumps([entry("B1", "x", small_description=["a", None])]),
                r"entry 1 .*small_description is \[.a., null\], expected a list of texts",
            ),
            (json.dumps([entry("B1", "x", category=None)]), "entry 1 .*category is null, expected text"),
            (
                json.dumps([entry("B1", "x", product_category=7)]),
                "entry 1 .*product_category is 7, expected text",
            ),
            (json.dumps([entry("B1", "x", query=None)]), "entry 1 .*query is null, expected text"),
            (json.dumps([entry("B1", "x", pricing="call us")]), "price 'call us' is not in dollars"),
            (
                json.dumps([{k: v for k, v in lamp.items() if k != "pricing"} for lamp in LAMPS]),
                "none of its 28 products has a price",
            ),
        ],
    )
    def test_in_the_catalogue(self, content: str, said: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=said) as caught:
            products(tmp_path / "items.json", content)
        assert (
            str(caught.value).encode()
            and "items.json" in str(caught.value)
            and "paw data webshop fetch" in str(caught.value)
            and "\n" not in str(caught.value)
        )

    @pytest.mark.parametrize(
        ("attributes", "said"),
        [
            (json.dumps(LAMP_ATTRIBUTES)[:-9], "items_ins_v2.json: truncated"),
            ("[]", "not what WebShop's items_ins_v2.json holds"),
            (
                {k: v for k, v in LAMP_ATTRIBUTES.items() if k != "B000000002"},
                "B000000002 is not in items_ins_v2",
            ),
            (
                {**LAMP_ATTRIBUTES, "B000000002": {"instruction": "x"}},
                "an instruction without instruction_attributes",
            ),
            (
                {**LAMP_ATTRIBUTES, "B2": {"attributes": None}},
                "items_ins_v2.json: product 'B2': attributes is null, expected a list",
            ),
            (
                {**LAMP_ATTRIBUTES, "B2": {"instruction": 7}},
                "items_ins_v2.json: product 'B2': instruction is 7, expected text",
            ),
            (
                {**LAMP_ATTRIBUTES, "B2": {"instruction": "x", "instruction_attributes": "soft"}},
                "product 'B2': instruction_attributes is .soft., exp",
            ),
            (
                {**LAMP_ATTRIBUTES, "B2": {"instruction": "x\ud83d"}},
                r"items_ins_v2.json: product 'B2': instruction holds half a character",
            ),
        ],
    )
    def test_in_the_attributes(
        self, attributes: Any, said: str, write_files: WriteFiles, shop_cache: Path
    ) -> None:
        files = write_files(attributes=attributes)
        with pytest.raises(DataError, match=said):
            open_catalogue(files)
        assert not list((shop_cache / "webshop/stores").glob(f"*{files.fingerprint()}/*"))

    @pytest.mark.parametrize(
        ("said", "says"),
        [
            ({"instruction": None}, "instruction is null, expected text"),
            ({"instruction_options": None}, "instruction_options is null, expected a list of texts"),
            ({"instruction_attributes": ["soft", 1]}, "instruction_attributes is .*expected a list of texts"),
        ],
    )
    def test_in_the_human_instructions(
        self, said: dict[str, Any], says: str, write_files: WriteFiles
    ) -> None:
        well = {"instruction": "a lamp", "instruction_attributes": ["soft"], "instruction_options": []}
        skipped = {"instruction": None, "instruction_attributes": [], "instruction_options": None}
        path = write_files(human={"B000000001": [well, skipped]}).human
        assert path is not None and source.read_human_instructions(path)["B000000001"] == [well, skipped]
        path = write_files(human={"B000000001": [well], "B000000002": [well | said]}).human
        with pytest.raises(DataError, match=rf"items_human_ins.json: product 'B000000002': {says}"):
            source.read_human_instructions(path)
        path = write_files(human={"B000000001": [{"instruction": "a lamp"}]}).human
        with pytest.raises(DataError, match=r"product 'B000000001' lacks instruction_attributes"):
            source.read_human_instructions(path)

    def test_no_human_instructions(self, write_files: WriteFiles) -> None:
        with pytest.raises(DataError, match=r"no human goals .*env.webshop.goals=synthetic"):
            open_catalogue(write_files()).goals("human")

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"items\.json: no such file.*paw data webshop fetch"):
            open_catalogue(Files("x", tmp_path / "items.json", tmp_path / "i", None))

    def test_half_a_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "items_shuffle.json").write_text("[]")
        monkeypatch.setenv("PAW_DATA", str(tmp_path))
        with pytest.raises(
            DataError, match=r"items_ins_v2\.json: missing; it belongs beside items_shuffle\.json"
        ):
            data.find_files("full")

    def test_a_torn_store_is_named(self, write_files: WriteFiles) -> None:
        files = write_files([*LAMPS, entry("B777777777", "one more")], {**LAMP_ATTRIBUTES, "B777777777": {}})
        folder = open_catalogue(files).folder
        (folder / "posting_offsets.npy").write_bytes(b"")
        from paw_hpc.envs.webshop import catalogue

        catalogue._open.cache_clear()
        with pytest.raises(DataError, match=r"torn .*delete it and try again"):
            open_catalogue(files)


def test_without_any_data_a_catalogue_is_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paw_hpc.system import data_paths

    monkeypatch.setattr(data_paths, "_checkouts", list)
    monkeypatch.setattr(data, "DEFAULT_PRODUCTS", 5)
    monkeypatch.setattr(data.generated_files, "__defaults__", (5, 0, None))
    monkeypatch.setenv("PAW_CACHE", str(tmp_path))
    assert data.find_files("auto").name == "generated-v1-5-0"
    with pytest.raises(DataError, match=r"no small WebShop set .*paw data webshop fetch --set small"):
        data.find_files("small")


def test_a_store_is_built_once_and_anew_when_its_files_change(
    write_files: WriteFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_files()
    folder = open_catalogue(files).folder
    capsys.readouterr()
    assert open_catalogue(files).folder == folder and not capsys.readouterr().err
    again = open_catalogue(write_files(LAMPS[:2]))
    assert again.folder != folder and len(again.products) == 2


def test_fetching_keeps_what_is_whole_and_refuses_a_quota_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAW_CACHE", str(tmp_path))
    answers = {
        "items_shuffle_1000.json": b"[]",
        "items_ins_v2_1000.json": b"{}",
        "items_human_ins.json": b"<html>quota</html>",
    }
    monkeypatch.setattr(data, "_blocks", lambda name, folder: iter([answers[name]]))
    with pytest.raises(DataError, match=r"did not answer with items_human_ins\.json"):
        data.fetch("small")
    assert sorted(path.name for path in (tmp_path / "webshop").glob("*.json")) == [
        "items_ins_v2_1000.json",
        "items_shuffle_1000.json",
    ]
