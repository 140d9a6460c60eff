"""What the agent is shown, how its answer is read, and the words that tiny models read it in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from paw_hpc.envs.alfworld import games
from paw_hpc.envs.alfworld.compose import compose
from paw_hpc.envs.alfworld.engine import GameEngine
from paw_hpc.envs.alfworld.prompt import AlfworldView, split_intro
from paw_hpc.envs.alfworld.tokenizer import (
    MAX_NUMBER,
    SPECIAL,
    alfworld_texts,
    build_tokenizer,
    save_tokenizer,
)
from paw_hpc.envs.base import EnvironmentState, Task
from paw_hpc.policy.loading import load_tokenizer
from paw_hpc.recipe import TASK_TYPES, ModelSection

TASK = Task("train/pick_and_place_simple-Mug-None-Shelf-1/t0", "pick_and_place_simple", "")
INTRO = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, "
    "you see a desk 1, and a shelf 1.\n\n"
    "Your task is to: put some mug on shelf."
)
COMMANDS = (
    "examine desk 1",
    "go to desk 1",
    "go to desk 12",
    "go to shelf 1",
    "help",
    "inventory",
    "look",
    "take mug 2 from desk 1",
    "use desklamp 1",
)


def view(style: str, history: int = 2, seed: int = 0, commands: tuple[str, ...] = COMMANDS) -> AlfworldView:
    made = AlfworldView(TASK, style=style, history=history, seed=seed)
    made.start(EnvironmentState(INTRO, commands))
    return made


def text(of: AlfworldView) -> str:
    [message] = of.messages()
    assert message["role"] == "user"
    return message["content"]


def walked(style: str, steps: int, history: int = 2) -> AlfworldView:
    """After `steps` steps: action i is "go to desk i", its observation "You see thing i."."""
    made = view(style, history)
    for i in range(1, steps + 1):
        made.observe(f"go to desk {i}", EnvironmentState(f"  You see thing {i}.\n", COMMANDS))
    return made


def test_the_first_observation_is_split_into_room_and_task() -> None:
    room, task = split_intro(INTRO)
    assert (
        room.startswith("You are in the middle")
        and room.endswith("a shelf 1.")
        and task == "put some mug on shelf."
    )


class TestPaperPrompt:
    def test_shows_task_step_observation_and_admissible_actions(self) -> None:
        shown = text(view("paper"))
        assert "Your task is to: put some mug on shelf." in shown
        assert (
            "You are now at step 1." in shown
            and "Current observation: You are in the middle of a room." in shown
        )
        assert "TextWorld" not in shown and shown.count("task") == 1
        [listed] = re.findall(r"Admissible actions: (.*)", shown)
        assert listed == ", ".join(f"'{c}'" for c in COMMANDS if c != "help")
        for tag in ("<think> </think>", "<action> </action>"):
            assert tag in shown

    def test_shows_the_last_two_observations_with_the_actions_then_taken_and_no_older_one(self) -> None:
        shown = text(walked("paper", 5))
        assert "You have taken 5 step(s) so far. Your last 2 observation(s)" in shown
        assert "[step 4] observation: You see thing 3. action: go to desk 4" in shown
        assert "[step 5] observation: You see thing 4. action: go to desk 5" in shown
        assert "You are now at step 6. Current observation: You see thing 5." in shown
        assert "thing 2" not in shown and shown.index("[step 4]") < shown.index("[step 5]") < shown.index(
            "step 6"
        )

    def test_shows_what_there_is_of_a_short_history(self) -> None:
        shown = text(walked("paper", 1))
        assert (
            "taken 1 step(s) so far. Your last 1 observation(s)" in shown
            and "[step 1] observation: You are in the middle" in shown
        )
        assert "[step" not in text(walked("paper", 3, history=0)) and "now at step 4" in text(
            walked("paper", 3, history=0)
        )

    @pytest.mark.parametrize(
        ("response", "action", "valid"),
        [
            ("<think>where?</think><action>go to desk 1</action>", "go to desk 1", True),
            (
                "<think>two\nlines</think>\n<action>\n  Go To  DESK 1\n</action> and so on",
                "go to desk 1",
                True,
            ),
            ("<think></think><action>look</action>", "look", True),
            ("<action>go to desk 1</action>", "go to desk 1", False),
            ("<think>never closed <action>go to desk 1</action>", "go to desk 1", False),
            ("<think>x</think><action>go to bed 1</action>", "go to bed 1", False),
            ("<think>x</think><action></action>", "", False),
            (
                "<think></think><action>look</action><action>look</action>",
                "<think></think><action>look</action><action>look</action>",
                False,
            ),
            ("<think>x</think> go to desk 1", "<think>x</think> go to desk 1", False),
            ("<think>x</think><action>go to desk 1", "<think>x</think><action>go to desk 1", False),
            ("", "", False),
        ],
    )
    def test_takes_one_admissible_action_after_some_thought(
        self, response: str, action: str, valid: bool
    ) -> None:
        assert view("paper").parse(response) == (action, valid)

    def test_sends_no_more_than_the_end_of_a_malformed_answer_to_the_game(self) -> None:
        assert view("paper").parse("blah " * 300) == (("blah " * 300).strip()[-60:], False)


class TestCompactPrompt:
    def test_takes_the_bare_command_in_any_case_and_spacing(self) -> None:
        shown = view("compact")
        assert shown.parse("go to desk 1") == ("go to desk 1", True)
        assert shown.parse(" Take  mug 2\nFROM desk 1 ") == ("take mug 2 from desk 1", True)
        assert shown.parse("go to desk 2") == ("go to desk 2", False)
        assert shown.parse("go to desk 1 now") == ("go to desk 1 now", False)
        assert shown.parse("") == ("", False)

    @pytest.mark.parametrize("seed", range(5))
    def test_lists_every_admissible_command_and_nothing_else(self, seed: int) -> None:
        assert sorted(listed(text(view("compact", seed=seed)))) == sorted(COMMANDS)

    def test_lists_every_admissible_command_of_real_states(self) -> None:
        for state in played_states(TASK_TYPES[2]):
            shown = view("compact", commands=state.admissible)
            assert sorted(listed(text(shown))) == sorted(state.admissible)

    def test_lists_them_in_an_order_of_its_own_seed_and_step(self) -> None:
        assert text(view("compact", seed=1)) == text(view("compact", seed=1))
        assert len({text(view("compact", seed=seed)) for seed in range(6)}) > 1
        shown = view("compact", seed=1)
        first = listed(text(shown))
        orders = set()
        for _ in range(6):
            shown.observe("look", EnvironmentState("You see.", COMMANDS))
            orders.add(tuple(listed(text(shown))))
        assert len(orders | {tuple(first)}) > 1

    def test_shows_older_actions_the_last_two_observations_and_where_it_is(self) -> None:
        lines = text(walked("compact", 5)).split("\n")
        assert lines[0] == "task: put some mug on shelf."
        assert lines[1] == "did: desk 1; desk 2; desk 3"
        assert lines[2:5] == [
            "saw: You see thing 3. > go to desk 4",
            "saw: You see thing 4. > go to desk 5",
            "now: You see thing 5.",
        ]
        assert lines[5].startswith("can: ") and len(lines) == 6
        assert "now: start" in text(view("compact")) and "did:" not in text(view("compact"))


def listed(prompt: str) -> Iterator[str]:
    """The commands that a grouped list stands for."""
    line = prompt.split("can: ", 1)[1]
    found = []
    for group in line.split("; "):
        if group.startswith("go to "):
            for places in group.removeprefix("go to ").split(", "):
                kind, *numbers = places.split(" ")
                found += [f"go to {kind} {number}" for number in numbers]
        elif " " in group:
            verb, rest = group.split(" ", 1)
            found += [f"{verb} {item}" for item in rest.split(", ")]
        else:
            found.append(group)
    return found  # type: ignore[return-value]


class TestShorten:
    @pytest.mark.parametrize("style", ["paper", "compact"])
    @pytest.mark.parametrize("steps", [0, 1, 2, 9])
    def test_drops_the_oldest_first_keeps_the_present_and_ends(self, style: str, steps: int) -> None:
        shown = walked(style, steps)
        whole, lengths = text(shown), [len(text(shown))]
        present = "Current observation: " if style == "paper" else "now: "
        while shown.shorten():
            lengths.append(len(text(shown)))
            assert lengths[-1] < lengths[-2] or style == "compact", (
                "every cut of the paper's prompt drops something"
            )
            assert len(lengths) < 20
        assert shown.shorten() is False
        last = text(shown)
        assert whole.split(present)[1].split("\n")[0] == last.split(present)[1].split("\n")[0]
        for i in range(1, steps):
            assert f"thing {i}." not in last and "did:" not in last and "[step" not in last
        assert "put some mug on shelf." in last and (len(last) < len(whole)) == (steps > 0)

    def test_drops_the_older_observation_before_the_newer_one(self) -> None:
        shown = walked("paper", 5)
        assert shown.shorten()
        assert (
            "thing 3" not in text(shown)
            and "thing 4" in text(shown)
            and "Your last 1 observation(s)" in text(shown)
        )

    def test_halves_the_commands_played_earlier_once_observations_are_gone(self) -> None:
        shown = walked("compact", 8)
        assert shown.shorten() and shown.shorten()
        assert "saw:" not in text(shown) and "did: desk 1; desk 2;" in text(shown)
        assert shown.shorten()
        assert "did: desk 5; desk 6; desk 7; desk 8\n" in text(shown)

    @pytest.mark.parametrize("style", ["paper", "compact"])
    def test_lasts_for_one_step(self, style: str) -> None:
        shown = walked(style, 5)
        while shown.shorten():
            pass
        shown.observe("go to desk 6", EnvironmentState("You see thing 6.", COMMANDS))
        assert text(shown) == text(walked(style, 6))


def test_the_anchor_is_what_can_be_seen() -> None:
    def after(observation: str, commands: tuple[str, ...]) -> str:
        shown = view("paper")
        shown.observe("look", EnvironmentState(observation, commands))
        return shown.anchor()

    assert after("a desk", COMMANDS) == after("a desk ", COMMANDS)
    assert after("a desk", COMMANDS) == after("a desk", COMMANDS[1:]), (
        "whether the commands join it is the objective's to say"
    )
    assert len({after("a desk", COMMANDS), after("a bed", COMMANDS), view("paper").anchor()}) == 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(["task: did: saw: now: start can: > ;", *alfworld_texts()])


def played_states(task_type: str, source: Any = None) -> Iterator[EnvironmentState]:
    """Every state of a game along its walkthrough, with a look at what is held on the way."""
    game = (
        games.load_game(games.tasks("valid_unseen", "official", [task_type])[1])
        if source
        else compose("train", task_type, 1, seed=2)[1]
    )
    engine = GameEngine(game)
    observation, admissible, _ = engine.reset()
    yield EnvironmentState(observation.split("=-")[-1].strip(), admissible)
    for command in game["walkthrough"]:
        examined = [c for c in admissible if c.startswith("examine ")]
        for played in ([examined[-1]] if examined else []) + ["inventory", "look", command]:
            observation, admissible, _ = engine.step(played)
            yield EnvironmentState(observation, admissible)


def unknown(tokenizer: PreTrainedTokenizerBase, of: str) -> bool:
    return tokenizer.unk_token_id in tokenizer.encode(of, add_special_tokens=False)


class TestTokenizer:
    def test_every_admissible_command_comes_back_as_it_was_and_no_observation_has_an_unknown_word(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        commands = set()
        for task_type in TASK_TYPES[::2]:
            for state in played_states(task_type):
                assert not unknown(tokenizer, state.observation), state.observation
                commands |= set(state.admissible)
        assert len(commands) > 80
        for command in commands:
            assert tokenizer.decode(tokenizer.encode(command, add_special_tokens=False)) == command

    def test_so_it_is_with_official_games_and_the_shipped_policy(
        self, tokenizer: PreTrainedTokenizerBase, official_games: Any
    ) -> None:
        shipped = load_tokenizer(ModelSection(path="warm-start"))
        for task_type in TASK_TYPES[1::2]:
            for state in played_states(task_type, official_games):
                assert not unknown(tokenizer, state.observation)
                assert not unknown(shipped, state.observation), state.observation
                for command in state.admissible:
                    for each in (tokenizer, shipped):
                        assert each.decode(each.encode(command, add_special_tokens=False)) == command
        for split in games.OFFICIAL_COUNTS:
            for task in games.tasks(split, "official")[::5]:
                found = re.search(r'Your task is to: (.*?)"', games.load_game(task)["grammar"])
                assert found and not unknown(tokenizer, found[1]) and not unknown(shipped, found[1])

    def test_numbers_are_words_up_to_the_highest(self, tokenizer: PreTrainedTokenizerBase) -> None:
        for number in range(MAX_NUMBER + 1):
            ids = tokenizer.encode(f"go to shelf {number}", add_special_tokens=False)
            assert len(ids) == 4 and tokenizer.decode(ids) == f"go to shelf {number}"
        assert unknown(tokenizer, f"shelf {MAX_NUMBER + 1}")

    def test_an_unknown_word_is_seen_as_such(self, tokenizer: PreTrainedTokenizerBase) -> None:
        assert unknown(tokenizer, "go to zeppelin 1")

    def test_a_word_like_a_marker_is_no_marker(self, tokenizer: PreTrainedTokenizerBase) -> None:
        ids = tokenizer.encode("user assistant end pad", add_special_tokens=False)
        assert not set(ids) & {tokenizer.convert_tokens_to_ids(s) for s in SPECIAL if s != "<unk>"}

    def test_a_saved_one_is_the_same(self, tokenizer: PreTrainedTokenizerBase, tmp_path: Any) -> None:
        texts = ["task: did: saw: now: start can: > ;", *alfworld_texts()]
        loaded = load_tokenizer(ModelSection(path=str(save_tokenizer(texts, tmp_path))))
        for of in (text(walked("compact", 5)), "<|user|>look<|end|><|assistant|>"):
            assert loaded.encode(of, add_special_tokens=False) == tokenizer.encode(
                of, add_special_tokens=False
            )
        assert (loaded.eos_token, loaded.pad_token, loaded.unk_token) == ("<|end|>", "<pad>", "<unk>")
        assert loaded.chat_template == tokenizer.chat_template

    def test_the_vocabulary_does_not_depend_on_the_order_of_texts(self) -> None:
        texts = list(alfworld_texts())
        assert build_tokenizer(texts).get_vocab() == build_tokenizer(reversed(texts)).get_vocab()
