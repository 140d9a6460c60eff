"""Kept episodes as text, for a terminal or a script."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from paw_hpc.study.view.kept import EpisodeSummary, KeptFile
from paw_hpc.system.errors import UserError

OUTCOMES = ("success", "failure")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but the line feed, and what turns the direction of writing: what an environment said must not steer a
terminal."""
_SHADES = ((0.01, "bold red"), (0.1, "red"), (0.5, "yellow"), (1.1, ""))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which episodes are shown; None: any."""

    group: int | None = None
    member: int | None = None
    outcome: str | None = None
    task_type: str | None = None
    grep: str | None = None
    """Text in the action, response or next observation of a step, in any case of letters."""
    selected: bool = False
    """Only episodes with a selected step."""
    invalid: bool = False
    """Only episodes with an invalid action."""

    def __post_init__(self) -> None:
        if self.outcome not in (None, *OUTCOMES):
            raise UserError(f"--outcome {self.outcome}: one of {', '.join(OUTCOMES)}")


def matching(file: KeptFile, wanted: Wanted) -> Iterator[tuple[EpisodeSummary, set[int] | None]]:
    """Episodes of a file that are wanted; of each the steps in which the text was found (None: no text was
    looked for)."""
    hits: dict[tuple[int, int], set[int]] = {}
    if wanted.grep is not None:
        for group, member, step in file.search(wanted.grep):
            hits.setdefault((group, member), set()).add(step)
    for e in file.episodes:
        if (
            wanted.group in (None, e.group)
            and wanted.member in (None, e.member)
            and wanted.task_type in (None, e.task_type)
            and (wanted.outcome is None or e.success == (wanted.outcome == "success"))
            and not (wanted.selected and not e.selected)
            and not (wanted.invalid and not e.invalid)
            and (wanted.grep is None or (e.group, e.member) in hits)
        ):
            yield e, hits.get((e.group, e.member))


def show(file: KeptFile, wanted: Wanted, *, limit: int, steps: bool, console: Console) -> int:
    """Print the wanted episodes of a file, if any: a line each, or all of their steps. Returns how many were
    shown."""
    kind = "update" if file.file.training else "evaluation after update"
    shown = 0
    for episode, hits in matching(file, wanted):
        if not shown:
            console.print(Text(f"{kind} {file.file.update}  ({file.file.key})", style="bold"))
        if shown == limit:
            console.print(Text(f"... more; --limit {2 * limit} shows more", style="dim"))
            break
        shown += 1
        console.print(_line(episode), soft_wrap=True)
        if steps or hits is not None:
            for step in file.steps(episode):
                if hits is None or step["step"] in hits:
                    _print_step(console, step)
    return shown


def as_json(file: KeptFile, wanted: Wanted, limit: int) -> Iterator[str]:
    """One line per wanted episode: `update`, `training`, the fields of `EpisodeSummary`, and `steps` (those
    where the text was found)."""
    for number, (episode, hits) in enumerate(matching(file, wanted)):
        if number == limit:
            return
        found = [step for step in file.steps(episode) if hits is None or step["step"] in hits]
        yield json.dumps(
            {"update": file.file.update, "training": file.file.training} | asdict(episode) | {"steps": found},
            allow_nan=False,
        )


def _line(e: EpisodeSummary) -> Text:
    said = (
        f"  group {e.group}  member {e.member}  {'success' if e.success else 'failure'}  {e.steps} "
        f"steps  return {e.episode_return:g}"
    )
    said += "" if e.advantage is None else f"  advantage {e.advantage:+.2f}"
    said += f"  invalid {e.invalid}" + ("" if e.selected is None else f"  selected {e.selected}")
    said += "" if e.surprise is None else f"  {e.surprise:.2f} nats/token"
    return Text(f"{said}  {clean(e.task_id)}")


def _print_step(console: Console, step: dict[str, Any]) -> None:
    facts = [f"step {step['step']}", "valid" if step["valid"] else "INVALID", f"reward {step['reward']:g}"]
    facts += [] if step["entropy"] is None else [f"entropy {step['entropy']:.2f}"]
    facts += ["selected"] if step["selected"] else []
    facts += [] if not step["wm_weight"] else [f"lambda {step['wm_lambda']:.2f}"]
    console.print(Text("    " + "  ".join(facts), style="bold"))
    console.print(Text("      > ").append(clean("".join(step["response"]))), soft_wrap=True)
    if step["observation"]:
        console.print(_tokens(step), soft_wrap=True)
    if step["predicted"] is not None:
        console.print(Text("      expected: ", style="dim").append(clean(step["predicted"])), soft_wrap=True)


def _tokens(step: dict[str, Any]) -> Text:
    """The next observation, each token in the colour of its probability; silenced ones dim."""
    text = Text("      < ")
    for n, piece in enumerate(step["observation"]):
        style = (
            ""
            if step["observation_p"] is None
            else next(shade for bound, shade in _SHADES if step["observation_p"][n] < bound)
        )
        if step["silenced"] is not None and step["silenced"][n]:
            style = "dim"
        text.append(clean(piece), style=style)
    return text


def clean(text: str) -> str:
    """Without what steers a terminal: such characters are spelled."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
