"""The cached engine says word for word what stock TextWorld says, and stored walkthroughs win in it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paw_hpc.envs.alfworld import games, official
from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.envs.alfworld.engine import GameEngine
from paw_hpc.recipe import TASK_TYPES

Game = dict[str, Any]
Said = list[Any]
"""[command, or None for a reset; feedback; admissible commands; won]"""
Both = tuple[list[list[Said]], list[list[Said]]]

INVALID = (
    "",
    "fly to the moon",
    "go to",
    "look around",
    "GO TO SHELF 1",
    "take everything",
    "help me",
    "go to cabinet 99",
)
STOCK = """
import json, sys, textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs.pddl.pddl import PddlEnv

_, orders, target = sys.argv  # TextWorld's translator will overwrite it
transcripts = []
for game, commands in json.load(open(orders)):
    env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False)
    env.load(game)
    said = []
    for command in commands:
        state = env.reset() if command is None else env.step(command)[0]
        said.append([command, state.feedback, state["admissible_commands"], bool(state["won"])])
    transcripts.append(said)
with open(target, "w") as file:
    json.dump(transcripts, file)
"""


@pytest.fixture(scope="module")
def one_of_each(session_cache: Path) -> dict[str, Game]:
    """A game of every task type: official ones where they are at hand (the smallest of some), else generated
    ones."""
    chosen = {t: min((compose("train", t, i, seed=7)[1] for i in range(6)), key=_size) for t in TASK_TYPES}
    if official.find() is None:
        return chosen
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAW_CACHE", str(session_cache))
        for task_type in TASK_TYPES[1:4]:
            listed = games.tasks("valid_seen", "official", [task_type])
            chosen[task_type] = min((games.load_game(task) for task in listed), key=_size)
    return chosen


def _size(game: Game) -> int:
    return len(game["pddl_problem"])


def played(engine: GameEngine, command: str | None) -> Said:
    feedback, admissible, won = engine.reset() if command is None else engine.step(command)
    return [command, feedback, list(admissible), won]


def walk(game: Game, seed: int, steps: int) -> list[Said]:
    """The walkthrough, some steps beyond it, and after a second reset a random walk with invalid commands in
    between."""
    rng, engine = np.random.default_rng(seed), GameEngine(game)
    said = [played(engine, None)] + [played(engine, command) for command in game["walkthrough"]]
    for start in (False, True):
        if start:
            said.append(played(engine, None))
        for step in range(steps if start else 3):
            admissible = said[-1][2]
            # Most admissible commands go somewhere or look at something. The verb used least often comes
            # next, or little would ever happen.
            used = Counter(s[0].split(" ")[0] for s in said if s[0])
            rarest = min(used[c.split(" ")[0]] for c in admissible if c != "help")
            choices = [c for c in admissible if c != "help" and used[c.split(" ")[0]] == rarest]
            command = (
                INVALID[int(rng.integers(len(INVALID)))]
                if step % 4 == 3
                else choices[int(rng.integers(len(choices)))]
            )
            said.append(played(engine, command))
    return said


def differences(ours: Sequence[Said], stock: Sequence[Said]) -> list[tuple[Said, Said]]:
    assert len(ours) == len(stock)
    return [(a, b) for a, b in zip(ours, stock, strict=True) if a != b]


@pytest.fixture(scope="module")
def both(one_of_each: dict[str, Game], tmp_path_factory: pytest.TempPathFactory) -> Both:
    """(ours, stock's) transcripts of all games; stock plays in a process where nobody has put caches into
    TextWorld."""
    folder = tmp_path_factory.mktemp("stock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAW_CACHE", str(folder / "cache"))
        ours = [walk(game, seed, steps=12) for seed, game in enumerate(one_of_each.values())]
        # Once more, now that their translations are kept (see test_alfworld_translations.py).
        assert ours == [walk(game, seed, steps=12) for seed, game in enumerate(one_of_each.values())]
    orders = [
        [game, [said[0] for said in transcript]]
        for game, transcript in zip(one_of_each.values(), ours, strict=True)
    ]
    (folder / "orders.json").write_text(json.dumps(orders))
    subprocess.run(
        [sys.executable, "-c", STOCK, str(folder / "orders.json"), str(folder / "said.json")], check=True
    )
    return ours, json.loads((folder / "said.json").read_text())


class TestAgainstStockTextWorld:
    def test_every_word_every_command_and_every_win_are_the_same(self, both: Both) -> None:
        ours, stock = both
        for task_type, a, b in zip(TASK_TYPES, ours, stock, strict=True):
            assert differences(a, b) == [], task_type

    def test_the_walk_met_what_it_should(self, both: Both) -> None:
        """Or else the comparison says little: all verbs, wins, invalid commands, resets."""
        said = [s for transcript in both[1] for s in transcript]
        verbs = {s[0].split(" ")[0] for s in said if s[0] and s[1] != "Nothing happens."}
        assert verbs >= {
            "go",
            "open",
            "close",
            "take",
            "move",
            "examine",
            "use",
            "clean",
            "heat",
            "cool",
            "inventory",
            "look",
        }
        assert sum(s[3] for s in said) >= len(TASK_TYPES) and sum(s[0] is None for s in said) == 2 * len(
            TASK_TYPES
        )
        assert sum(s[0] in INVALID and s[1] == "Nothing happens." for s in said) > 15

    @pytest.mark.parametrize("part", ["feedback", "an admissible command", "their order", "the win"])
    def test_a_perturbed_transcript_is_told_apart(self, both: Both, part: str) -> None:
        perturbed = copy.deepcopy(both[0][2])
        said = perturbed[5]
        if part == "feedback":
            said[1] = said[1].replace(" a ", " the ", 1) + " "
        elif part == "an admissible command":
            said[2].pop()
        elif part == "their order":
            said[2].reverse()
        else:
            said[3] = not said[3]
        assert len(differences(perturbed, both[1][2])) == 1


class TestPlay:
    def test_walkthroughs_win_with_their_last_command_and_not_before(
        self, both: Both, one_of_each: dict[str, Game]
    ) -> None:
        for game, said in zip(one_of_each.values(), both[0], strict=True):
            length = len(game["walkthrough"])
            assert [s[3] for s in said[: length + 1]] == [False] * length + [True]

    def test_every_reset_is_the_first_again(self, both: Both, one_of_each: dict[str, Game]) -> None:
        for said in both[1]:
            first, second = [s for s in said if s[0] is None]
            assert first == second
        for game, said in list(zip(one_of_each.values(), both[0], strict=True))[2:5]:
            engine = GameEngine(game)
            for _ in range(3):
                again = [played(engine, s[0]) for s in said[: len(game["walkthrough"]) + 1]]
                assert again == said[: len(again)]

    def test_two_games_at_once_do_not_mix(self, both: Both, one_of_each: dict[str, Game]) -> None:
        a, b = [list(one_of_each.values())[i] for i in (0, 3)]
        engines = GameEngine(a), GameEngine(b)
        said: tuple[list[Said], list[Said]] = ([], [])
        for i in range(8):
            for engine, transcript, alone in zip(engines, said, (both[0][0], both[0][3]), strict=True):
                transcript.append(played(engine, alone[min(i, len(alone) - 1)][0]))
        assert said[0] == both[0][0][:8] and said[1] == both[0][3][:8]

    def test_the_planner_finds_the_way_from_wherever_the_player_is(
        self, one_of_each: dict[str, Game]
    ) -> None:
        game = one_of_each["look_at_obj_in_light"]
        engine = GameEngine(game, planner=True)
        _, admissible, won = engine.reset()
        for command in ("inventory", next(c for c in admissible if c.startswith("go to ")), "look"):
            engine.step(command)
        plan = engine.plan()
        assert plan
        for command in plan:
            assert not won
            _, _, won = engine.step(command)
        assert won
        engine.reset()
        for command in engine.plan():
            _, _, won = engine.step(command)
        assert won
