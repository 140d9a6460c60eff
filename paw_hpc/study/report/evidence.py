"""Next observations that were predicted best and worst, and what was learnt between the start and the end:
chosen by rule, from kept episodes.

The rule: of a run's newest evaluation whose kept episodes say how probable next observations were (of its
newest update where no evaluation does), the steps after the first of an episode, with at least `MIN_TOKENS`
tokens, that a copier of the previous observation does not get right as a whole. Nats per token order them;
the same text counts once. Learnt: the fall of the nats per token from the oldest such file to the newest,
over steps in which prompt, action and next observation are the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from paw_hpc.evaluation.episodes import folder
from paw_hpc.study.report.document import Block, Heading, Links, Paragraph, TableBlock
from paw_hpc.study.report.runs import Arm
from paw_hpc.study.view.library import Library
from paw_hpc.study.view.single import Place, write_page
from paw_hpc.study.view.terminal import clean

MIN_TOKENS = 5
SHOWN = 3
"""Of each kind, per arm."""
PAGE = "episodes.html"
RULE = (
    "Next observations by rule: best and worst predicted are the lowest and highest nats per token in the "
    "newest kept evaluation (else update) that "
    f"measured them, after an episode's first step, of at least {MIN_TOKENS} tokens, without those that "
    "only repeat the previous observation; learnt "
    "is the largest fall between the oldest and the newest of these files, where prompt, action and next "
    "observation are the same in both."
)
_COLUMNS = (
    "group",
    "member",
    "step",
    "action",
    "prompt",
    "observation",
    "observation_ids",
    "observation_logp",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One step that is shown."""

    kind: str
    place: Place
    step: int
    action: str
    observation: str
    nats: float
    """Per token."""
    before: float | None = None
    """At the start; only of what was learnt."""

    def link(self) -> tuple[str, str]:
        """(title, address) on the page of episodes."""
        run, file, group, member = self.place
        said = urlencode({"run": run, "file": file, "group": group, "member": member, "step": self.step})
        return (
            f"{self.kind}: {run}, {file}, group {group}, member {member}, step {self.step}",
            f"{PAGE}#{said}",
        )


def evidence(arms: Sequence[Arm], out: Path) -> list[Block]:
    """Tables per arm (of its first run) and the page of the episodes behind them, `out`/episodes.html; empty
    where nothing was kept or measured."""
    found = {arm.title: (arm.runs[0].path, examples(arm.runs[0].path)) for arm in arms}
    found = {title: each for title, each in found.items() if each[1]}
    if not found:
        return []
    library = Library([path for path, _ in found.values()])
    names = dict(zip((path for path, _ in found.values()), library.runs, strict=True))
    placed = [_named(example, names[path]) for path, chosen in found.values() for example in chosen]
    write_page(library, out / PAGE, only={example.place for example in placed})
    blocks: list[Block] = [Heading("Evidence"), Paragraph(RULE)]
    for title, (path, chosen) in found.items():
        blocks.append(_table(title, chosen))
        blocks.append(Links(tuple(_named(example, names[path]).link() for example in chosen)))
    blocks.append(
        Paragraph(f"{PAGE} beside this report shows these episodes whole; `paw view RUN` all that were kept.")
    )
    return blocks


def examples(run: Path) -> list[Example]:
    """Of one run, in the order best, worst, learnt; the run's name in their places is empty."""
    files = [file for training in (False, True) for file in folder.find(run) if file.training is training]
    measured = [(file, rows) for file in files if (rows := list(_steps(file.path)))]
    of_kind = [each for each in measured if not each[0].training] or measured
    if not of_kind:
        return []
    (first, old), (last, new) = of_kind[0], of_kind[-1]

    def shown(
        kind: str, rows: list[dict[str, Any]], order: Callable[[dict[str, Any]], float]
    ) -> Iterator[Example]:
        texts: set[str] = set()
        for row in sorted(rows, key=order):
            if row["observation"] not in texts and len(texts) < SHOWN:
                texts.add(row["observation"])
                place = ("", last.key, row["group"], row["member"])
                yield Example(
                    kind,
                    place,
                    row["step"],
                    row["action"],
                    row["observation"],
                    row["nats"],
                    row.get("before"),
                )

    chosen = [
        *shown("best predicted", new, lambda row: row["nats"]),
        *shown("worst predicted", new, lambda row: -row["nats"]),
    ]
    if first != last:
        before = {(row["prompt"], row["action"], row["observation"]): row["nats"] for row in old}
        both = [
            row | {"before": was}
            for row in new
            if (was := before.get((row["prompt"], row["action"], row["observation"]))) is not None
        ]
        fell = [row for row in both if row["before"] > row["nats"]]
        chosen += shown("learnt", fell, lambda row: row["nats"] - row["before"])
    return chosen


def _steps(path: Path) -> Iterator[dict[str, Any]]:
    """The steps of a file that the rule looks at, with their nats per token."""
    previous: dict[str, Any] = {}
    for row in folder.read(path, _COLUMNS).to_pylist():
        same_episode = (previous.get("group"), previous.get("member")) == (row["group"], row["member"])
        copies = same_episode and previous["observation_ids"] == row["observation_ids"]
        if (
            row["observation_logp"]
            and len(row["observation_ids"]) >= MIN_TOKENS
            and same_episode
            and not copies
        ):
            yield row | {"nats": -sum(row["observation_logp"]) / len(row["observation_logp"])}
        previous = row


def _named(example: Example, run: str) -> Example:
    return Example(
        example.kind,
        (run, *example.place[1:]),
        example.step,
        example.action,
        example.observation,
        example.nats,
        example.before,
    )


def _table(title: str, chosen: Sequence[Example]) -> TableBlock:
    rows = []
    for e in chosen:
        nats = f"{e.nats:.2f}" if e.before is None else f"{e.before:.2f} → {e.nats:.2f}"
        rows.append((e.kind, nats, _short(e.action, 40), _short(e.observation, 90)))
    return TableBlock(
        f"{title}: next observations", ("", "nats/token", "after", "what came"), tuple(rows), outside=True
    )


def _short(text: str, length: int) -> str:
    line = clean(" ".join(text.split()))
    return line if len(line) <= length else line[: length - 1] + "…"
