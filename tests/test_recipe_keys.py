"""Every key of a recipe is declared with a sentence, which `paw recipes keys` shows."""

from __future__ import annotations

from typer.testing import CliRunner

from paw_hpc.cli.main import app
from paw_hpc.recipe.keys import key_rows
from tests.recipe_values import KEYS


def test_every_key_has_a_sentence() -> None:
    rows = {row.path: row for row in key_rows()}
    assert rows.keys() == KEYS.keys()
    assert [path for path, row in rows.items() if len(row.about) < 10] == []


def test_the_command_finds_keys_by_their_words() -> None:
    shown = CliRunner().invoke(app, ["recipes", "keys", "wm.", "clipped"])
    assert shown.exit_code == 0 and "wm.rho" in shown.output and "algorithm" not in shown.output
    assert CliRunner().invoke(app, ["recipes", "keys", "no such words"]).exit_code
