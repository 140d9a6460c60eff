"""Recipes, overrides and sweeps, as people, scripts and other people's files may write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from paw_hpc.recipe import Recipe, dump_recipe, load_recipe, parse_recipe, read_yaml
from paw_hpc.recipe import loading as recipe_loading
from paw_hpc.study import sweep
from paw_hpc.study.sweep import load_sweep
from tests.fuzz import scratch
from tests.fuzz.harness import Target, TooMuch, broken_on, judged
from tests.fuzz.inputs import DEEP, ENDLESS, HUGE, VALUES, damaged, documents
from tests.recipe_values import KEYS, NASTY

VALID: dict[str, Any] = {
    "name": "run",
    "updates": 3,
    "env": {
        "name": "search",
        "search": {"train_sets": ["nq"], "retriever": "http", "url": "http://a:1"},
        "history": 2,
    },
    "model": {"tiny": {"hidden_size": 64, "heads": 4, "kv_heads": 2}, "tokenizer": "words"},
    "rollout": {"groups": 2, "stop": ["</action>"], "fleet": {"hosts": ["localhost"], "arguments": ["--x"]}},
    "eval": {"panel": "test:4@0"},
    "optimizer": {"lr": 1e-6, "betas": [0.9, 0.95]},
    "warm_start": {"hints": [0.1, 0.2]},
    "cluster": {
        "sbatch": {"comment": "paw"},
        "environment": {"A": "${HOME}"},
        "container": {"image": "a.sif", "mounts": ["/a:/b"]},
    },
}
TEXTS = (
    *NASTY,
    "${updates}",
    "${name}${name}",
    "${env}",
    "${.name}",
    "${oc.env:HOME}",
    "${oc.decode:'['}",
    "${" * 200,
    "${a" * 50 + "}" * 50,
    "a" * 30_000,
)
BOMBS = (
    "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 8)}]\n" for b, c in zip("abcdefghi", "bcdefghij", strict=True)),
    "a: &a {x: 1}\n" + "".join(f"{c}: &{c} {{<<: [{', '.join([f'*{b}'] * 9)}]}}\n" for b, c in zip("abcdefghi", "bcdefghij", strict=True)),
    "a: &a [*a]\n", "a: &a {b: *a}\n", "base: &b [*b]", "env: " + "[" * 3000, "{" * 3000, "- " * 3000, "? " * 2000, "a: " * 2000,
    "!!int " * 2000 + "1",
    "updates: " + "9" * 5000, "updates: 0x" + "f" * 5000, "updates: " + "1:" * 5000 + "1", "x: !!int a", "x: !!float z", "x: !!timestamp 2001-99-99",
    "x: !!binary =", "x: !!binary aGk=", "x: !!set {a, b}", "x: !!omap [a: 1]", "x: !!python/object/apply:os.system [id]", "? [a, b]\n: c",
    "? {a: b}\n: c",
    "name: a\nname: b", "1: 2", "null: 1", "true: false", "1.5: x", "---\na: 1\n---\nb: 2", "%YAML 9.9\n---\na: 1", "a: 'x", "\t", "@", "`", "",
    "5", "[a]",
    "a: ${b}\nb: ${a}", "a: ${a}", "a0: xxxxxxxxxx\n" + "".join(f"a{i + 1}: ${{a{i}}}${{a{i}}}${{a{i}}}\n" for i in range(40)),
    "base: recipe.yaml", "base: ''", "base: .", "base: ..", "base: /dev/zero", "base: /dev/stdin", 'base: "a\\0b"', "base: " + "x/" * 3000,
    "base: [a]",
    "base: other.yaml", "base: link.yaml", "cluster: [1]", "cluster: x", "cluster: {sbatch: {nodes: 1}}", "env: {search: {url: [}}",
)  # fmt: skip
"""Files that want more than they should get, or are no recipes in ways of their own."""


def _yaml(document: Any) -> bytes:
    text = yaml.dump(document, allow_unicode=True, width=10**6)
    for mark, raw in ((DEEP, "[" * 3000 + "]" * 3000), (ENDLESS, "{a: " * 3000), (HUGE, "9" * 5000)):
        text = text.replace(f"'{mark}'", raw)
    return text.encode("utf-8", "surrogatepass")


FILES = damaged((documents(VALID, (*VALUES, *TEXTS)).map(_yaml)) | st.sampled_from(BOMBS).map(str.encode))


def _recipe(data: bytes) -> None:
    folder = scratch.folder("recipes")
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    (folder / "other.yaml").write_bytes(b"base: recipe.yaml")
    if not (folder / "link.yaml").is_symlink():
        (folder / "link.yaml").symlink_to("link.yaml")
    found = judged(load_recipe, path)
    if isinstance(found, Recipe):
        path.write_text(dump_recipe(found), encoding="utf-8")
        assert judged(load_recipe, path) == found


def _overrides() -> SearchStrategy[list[str]]:
    keys = (
        *KEYS,
        "env",
        "env.search",
        "cluster.sbatch.x",
        "model.tiny.hidden_size",
        "a",
        "",
        ".",
        "env..name",
        "updates.x",
        "env[0]",
        "cluster[",
        "base",
        "a[b",
        "é",
    )
    values = (
        "1", "0", "-1", "1.5", "x", "", "null", "true", "[a]", "[1, 2]", "{a: 1}", "[", "{", "'", '"', "${updates}", "${", "\\${x}", "1e999",
        ".nan", "!!int a",
        "9" * 5000, "[" * 2000, "${a" * 40, "&a [*a]", "*a", "%", "@", "`", "a: b: c", "- a", "\ud83d", "\0", "\x1b[31m", "\n", "=", "a=b",
        "x" * 20_000, *NASTY,
    )  # fmt: skip
    one = st.tuples(
        st.sampled_from(keys), st.sampled_from(("=", "=", "=", "=", "", "==")), st.sampled_from(values)
    ).map("".join)
    return st.lists(one, min_size=1, max_size=3)


def _overridden(overrides: list[str]) -> None:
    path = scratch.folder("overrides") / "recipe.yaml"
    if not path.exists():
        path.write_text("model: {path: some/model}")
    judged(load_recipe, path, overrides)


SWEEP: dict[str, Any] = {
    "sweep": "ablation", "choices": "choices.yaml", "name": "{benchmark}-{arm}", "seeds": [0, 1],
    "runs": [{"benchmark": ["a", "b"], "arm": ["vanilla", "paw"]}, {"benchmark": "a", "arm": "paw", "name": "x-{arm}"}],
}  # fmt: skip
CHOICES: dict[str, Any] = {
    "benchmark": {"a": {"base": "{arm}.yaml", "env": {"name": "search"}}, "b": {"base": "b.yaml"}},
    "arm": {"vanilla": {"wm": {"enabled": False}}, "paw": {"wm": {"enabled": True, "rho": 0.2}}},
}
MANY = (
    {
        **SWEEP,
        "name": "-".join(f"{{x{i}}}" for i in range(9)),
        "runs": [{f"x{i}": [f"w{j}" for j in range(9)] for i in range(9)}],
    },
    {f"x{i}": {f"w{j}": {"base": "b.yaml"} if i == 0 else {f"k{i}": j} for j in range(9)} for i in range(9)},
)
"""A sweep of 387,420,489 runs, with its choices."""
WORDS = (
    None,
    "arm=paw",
    "arm=",
    "=",
    "arm",
    "arm=paw,paw",
    "arm=x",
    "benchmark=b,a",
    "x=y",
    "name=a",
    "arm={arm}",
)
FORMS = (
    "{benchmark}",
    "{benchmark:>9999999999}",
    "{arm!r}",
    "{0}",
    "{}",
    "{",
    "}",
    "{arm.x}",
    "{arm[0]}",
    "{benchmark}{arm}",
    "../x",
    "{{arm}}",
    "a\0b",
)


def _sweep(found: tuple[bytes, bytes, str | None]) -> None:
    folder = scratch.folder("sweeps")
    (folder / "sweep.yaml").write_bytes(found[0])
    (folder / "choices.yaml").write_bytes(found[1])
    judged(sweep.is_sweep, folder / "sweep.yaml")
    judged(load_sweep, folder / "sweep.yaml", [found[2]] if found[2] else [])


SWEEPS = st.tuples(
    damaged(documents(SWEEP, (*VALUES, *FORMS)).map(_yaml)),
    damaged(documents(CHOICES, (*VALUES, *FORMS)).map(_yaml)),
    st.sampled_from(WORDS),
) | st.just((_yaml(MANY[0]), _yaml(MANY[1]), None))


def _has(word: bytes) -> Callable[[Path], bool]:
    return lambda path: word in path.read_bytes()


def _plain_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _values(data: Any) -> None:
    judged(parse_recipe, data)


def _hints(error: Any) -> str:
    """As if every unknown key had a section around it."""
    return str(list(recipe_loading._section_at(error["loc"][:-1]).model_fields))


TARGETS = [
    Target("recipe", FILES, _recipe, lambda patch: patch.setattr(recipe_loading, "read_yaml", broken_on(read_yaml, _has(b"policy")))),
    Target("values of a recipe", documents(VALID), _values, lambda patch: patch.setattr(recipe_loading, "explain", _hints)),
    Target(
        "overrides", _overrides(), _overridden,
        lambda patch: patch.setattr(recipe_loading, "_said", broken_on(recipe_loading._said, lambda error: "flow" in str(error))),
    ),
    Target("sweep", SWEEPS, _sweep, lambda patch: patch.setattr(sweep, "read_yaml", broken_on(read_yaml, _has(b"arm")))),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_input_is_read_or_refused_in_one_line(target: Target) -> None:
    target.holds()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_planted_fault_is_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.finds_the_planted_fault(monkeypatch)


def test_a_loader_without_bounds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One input, not a search for one: each that a plain loader blows up takes seconds."""
    bomb = BOMBS[1].encode()
    _recipe(bomb)
    monkeypatch.setattr(recipe_loading, "read_yaml", _plain_yaml)
    with pytest.raises(TooMuch):
        _recipe(bomb)
