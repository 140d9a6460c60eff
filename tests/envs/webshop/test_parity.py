"""Against recordings of the original: every observation, action list, reward and done flag; every goal;
Lucene's ranking."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paw_hpc.envs.webshop.analysis import terms
from paw_hpc.envs.webshop.catalogue import Catalogue
from paw_hpc.envs.webshop.data import SMALL_INSTRUCTIONS, instruction_digest
from paw_hpc.envs.webshop.replay import replay
from paw_hpc.envs.webshop.reward import Tagger
from paw_hpc.system.errors import DataError


def test_recorded_episodes_replay_exactly(small: Catalogue, recorded: Path, tagger: Tagger) -> None:
    report = replay(recorded / "transcripts.jsonl.gz", small, tagger)
    assert report.episodes == 120
    assert report.compared == {"observation": 1065, "available": 1065, "reward": 945, "done": 945}
    assert report.exact and report.matched == report.compared and not report.differences


@pytest.mark.parametrize("damage", ["observation", "available", "reward", "done", "action"])
def test_one_changed_step_is_seen(
    damage: str, small: Catalogue, recorded: Path, tagger: Tagger, tmp_path: Path
) -> None:
    with gzip.open(recorded / "transcripts.jsonl.gz", "rt") as lines:
        episode = json.loads(next(lines))
    step: dict[str, Any] = episode["steps"][-1]
    changed = {
        "observation": step["observation"] + " ",
        "available": {"has_search_bar": False, "clickables": ["x"]},
        "reward": 0.25,
        "done": False,
    }
    step[damage] = changed.get(damage, "click[back to search]")
    (tmp_path / "t.jsonl").write_text(json.dumps(episode))
    report = replay(tmp_path / "t.jsonl", small, tagger)
    assert not report.exact
    wrong = {name for name in report.matched if report.matched[name] != report.compared[name]}
    assert wrong == ({damage} if damage != "action" else {"observation", "available", "reward", "done"})
    assert f"t.jsonl:1, step {len(episode['steps']) - 1}" in report.differences[0]


def test_a_file_without_steps_is_no_match(small: Catalogue, tagger: Tagger, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert not replay(tmp_path / "empty.jsonl", small, tagger).exact


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "truncated"),
        ('{"steps": []}', "not an episode"),
        ('{"goal_index": 7000, "steps": []}', "goal 7000 of 6910"),
    ],
)
def test_bad_transcripts_are_refused(
    content: str, said: str, small: Catalogue, tagger: Tagger, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(DataError, match=said):
        replay(tmp_path / "t.jsonl", small, tagger)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:30])
    with pytest.raises(DataError, match="truncated"):
        replay(tmp_path / "t.jsonl.gz", small, tagger)


def test_all_goals_are_those_of_the_original(small: Catalogue, recorded: Path) -> None:
    goals = small.goals("synthetic")
    theirs = json.loads(gzip.decompress((recorded / "goals.json.gz").read_bytes()))
    assert len(goals) == len(theirs) == 6910
    for ours, wanted in zip(goals, theirs, strict=True):
        found = {
            "asin": ours.asin,
            "category": ours.category,
            "query": ours.query,
            "name": ours.title,
            "product_category": ours.product_category,
            "instruction_text": ours.instruction,
            "attributes": list(ours.attributes),
            "price_upper": ours.price_cap,
            "goal_options": ours.options,
            "weight": ours.weight,
        }
        assert found == wanted
        assert list(ours.options) == list(wanted["goal_options"])
    assert instruction_digest(goals) == SMALL_INSTRUCTIONS
    assert len(small.goals("human")) == 13


def test_purchase_prices_are_those_of_the_recording(small: Catalogue) -> None:
    assert small.cost[small.products.find("B08ZRR3DZT")] == 20.880648545325442
    assert sum(small.cost.tolist()) == 103186.65510542535
    goals = small.goals("synthetic")
    assert (goals[0].asin, goals[0].price_cap) == ("B0743JKHBV", 40.0)
    assert (goals[1].asin, goals[1].options, goals[1].price_cap) == (
        "B09QCP4579",
        {"color": "black", "size": "3x-large"},
        50.0,
    )


def test_ranking_with_whole_lengths_is_not_lucenes(small: Catalogue, recorded: Path) -> None:
    """The control, and why this index is kept beside `bm25s`: the same terms and formula, without the
    one-byte lengths."""
    bm25s = pytest.importorskip("bm25s")
    products = [small.products[number] for number in range(len(small.products))]
    by_id = np.argsort(np.argsort([product.asin for product in products]))
    model = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    model.index([terms(product.document) for product in products], show_progress=False)
    page = queries = 0
    with gzip.open(recorded / "lucene_gold_top50.tsv.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            query, _, ranked = line.rstrip("\n").partition("\t")
            asked = terms(query)
            scores = model.get_scores(asked) if asked else np.zeros(len(products))
            found = [products[n].asin for n in np.lexsort((by_id, -scores))[:10] if scores[n] > 0]
            page += found == [item.partition(":")[0] for item in ranked.split()[:10]]
            queries += 1
    assert 0.4 < page / queries < 0.7


def test_ranking_is_lucenes(small: Catalogue, recorded: Path) -> None:
    """1415 queries: the same top product on all, the same first page in the same order on at least 99.5 %, 99
    % of the scores."""
    first = page = queries = scores = close = 0
    with gzip.open(recorded / "lucene_gold_top50.tsv.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            query, _, ranked = line.rstrip("\n").partition("\t")
            gold = [
                (asin, float(score)) for asin, _, score in (item.partition(":") for item in ranked.split())
            ]
            ours = [(small.products[number].asin, score) for number, score in small.scored(query)]
            queries += 1
            assert len(ours) == len(gold)
            first += [a for a, _ in ours[:1]] == [a for a, _ in gold[:1]]
            page += [a for a, _ in ours[:10]] == [a for a, _ in gold[:10]]
            of = dict(ours)
            scores += sum(asin in of for asin, _ in gold)
            close += sum(abs(of[asin] - score) < 1e-3 for asin, score in gold if asin in of)
    assert queries == first == 1415
    assert page / queries >= 0.995
    assert scores > 69_000 and close / scores > 0.99
