"""The benchmark of scheduling measures what it says: the same episodes under both schedules, in a time that
no machine changes."""

from __future__ import annotations

import pytest

from benchmarks.rollout import Asynchronous, LockStep, play
from paw_hpc.policy.loading import load_tokenizer
from paw_hpc.recipe import ModelSection
from paw_hpc.rollout.chat import ChatFormat


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(load_tokenizer(ModelSection(path="warm-start")))


def test_asynchronous_play_of_128_episodes_is_at_least_half_as_fast_again(chat: ChatFormat) -> None:
    alone, _, steps = play(Asynchronous, 128, 1.0, 10, chat)
    together, _, same_steps = play(LockStep, 128, 1.0, 10, chat)
    assert steps == same_steps and together / alone >= 1.5
    assert play(Asynchronous, 128, 1.0, 10, chat)[0] == alone, "time is virtual, so it repeats"


def test_one_episode_alone_waits_for_nobody(chat: ChatFormat) -> None:
    """Negative control: without others there is nothing to gain, and without spread next to nothing."""
    members = play(Asynchronous, 8, 0.0, 3, chat), play(LockStep, 8, 0.0, 3, chat)
    assert members[0][0] == pytest.approx(members[1][0])
