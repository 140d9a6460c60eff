"""`python -m tests.envs.reference_validity FILE.json.gz`: responses and what the reference made of them, read
again by our format rule.

The file holds a list of objects: benchmark, response, action, valid. Each response goes through `parse` of
the view that a run with `env.validity: format` plays with. Every difference is printed; the exit status is 1
where there is one (or nothing to compare), else 0.
"""

from __future__ import annotations

import collections
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paw_hpc.envs.alfworld.prompt import AlfworldView
from paw_hpc.envs.base import AgentView, EnvironmentState, Task
from paw_hpc.envs.search.prompt import SearchView
from paw_hpc.envs.webshop.prompt import WebshopView

ADMISSIBLE = {
    "alfworld": ("go to desk 1", "look", "open fridge 1", "take mug 1 from desk 1"),
    "webshop": ("search[<your query>]", "click[buy now]"),
    "search": (),
}


def view(benchmark: str, validity: str = "format", style: str = "paper") -> AgentView:
    """A view of a started episode. Raises ValueError for another benchmark."""
    made: AgentView
    if benchmark == "alfworld":
        made = AlfworldView(
            Task("t", "look_at_obj_in_light", ""), style=style, history=2, seed=0, validity=validity
        )
    elif benchmark == "webshop":
        made = WebshopView(style=style, history=2, validity=validity)
    elif benchmark == "search":
        made = SearchView("who?", style=style, history=2, max_steps=4, validity=validity)
    else:
        raise ValueError(f"no such benchmark: {benchmark!r}")
    made.start(EnvironmentState("start [SEP] Instruction: [SEP] a lamp [SEP] Search", ADMISSIBLE[benchmark]))
    return made


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The cases of a file, gzipped or not."""
    data = path.read_bytes()
    found = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    if not isinstance(found, list):
        raise ValueError("not a list of cases")
    return found


def compare(cases: Sequence[dict[str, Any]]) -> tuple[dict[str, int], list[str]]:
    """(benchmark -> cases compared, a line for each difference)."""
    counts, differences = collections.Counter[str](), list[str]()
    views: dict[str, AgentView] = {}
    for number, case in enumerate(cases):
        name = case["benchmark"]
        if name not in views:
            views[name] = view(name)
        action, valid = views[name].parse(case["response"])
        counts[name] += 1
        if (action, valid) != (case["action"], bool(case["valid"])):
            expected = f"{case['action']!r}, {bool(case['valid'])}"
            differences.append(
                f"case {number}, {name}: {case['response']!r} -> {action!r}, {valid}; the reference: "
                f"{expected}"
            )
    return dict(counts), differences


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m tests.envs.reference_validity FILE.json.gz", file=sys.stderr)
        return 2
    try:
        counts, differences = compare(read_cases(Path(arguments[0])))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        print(f"{arguments[0]}: not a file of cases ({type(error).__name__}: {error})", file=sys.stderr)
        return 1
    for line in differences:
        print(line)
    by_name = collections.Counter(line.split(", ", 1)[1].split(":", 1)[0] for line in differences)
    for name, count in sorted(counts.items()):
        print(f"{name}: {count} responses, {by_name[name]} read differently")
    return 1 if differences or not counts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
