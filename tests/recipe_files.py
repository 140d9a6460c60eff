"""The YAML files under recipes/, by kind: recipes, which stand alone, and sweeps, which name runs of them."""

from __future__ import annotations

from pathlib import Path

from paw_hpc.study.sweep import is_sweep

ROOT = Path(__file__).resolve().parents[1] / "recipes"
CHOICES = ROOT / "paper" / "choices.yaml"
"""What the words of the paper's sweeps stand for; neither of the two."""
SWEEPS = sorted(path for path in ROOT.rglob("*.yaml") if is_sweep(path))
RECIPES = sorted(
    path for path in ROOT.rglob("*.yaml") if path not in SWEEPS and not path.name.endswith(CHOICES.name)
)
