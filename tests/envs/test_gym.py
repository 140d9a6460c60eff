"""Environments of text for Gymnasium; that they play the same is in test_interface.py."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paw_hpc.envs import Environments
from paw_hpc.system.errors import UserError
from tests.envs import walks

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from paw_hpc.envs.gym import TextEnv, UnicodeText  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gym-cache")


@pytest.fixture(autouse=True)
def _cache(world_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAW_CACHE", str(world_cache))


@pytest.fixture
def env() -> Iterator[TextEnv]:
    made = TextEnv("search", **walks.GENERATED["search"])
    yield made
    made.close()


@pytest.mark.parametrize("benchmark", walks.GENERATED)
def test_gymnasiums_own_check_passes(benchmark: str) -> None:
    env: Any = gymnasium.make(
        f"paw_hpc.envs.gym:paw/{benchmark}", render_mode="ansi", **walks.GENERATED[benchmark]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it warns of what it does not like
        check_env(env.unwrapped)
    env.close()


def test_the_check_would_tell(env: TextEnv) -> None:
    """The control: an observation that is none of the space."""
    env.observation_space = UnicodeText(3)
    with pytest.raises(AssertionError, match="not within the observation space"):
        check_env(env)


def test_seeds_draw_tasks(env: TextEnv) -> None:
    first = [env.reset(seed=7)[1]["task_id"], *(env.reset()[1]["task_id"] for _ in range(5))]
    again = [env.reset(seed=7)[1]["task_id"], *(env.reset()[1]["task_id"] for _ in range(5))]
    other = [env.reset(seed=8)[1]["task_id"], *(env.reset()[1]["task_id"] for _ in range(5))]
    assert first == again != other and len(set(first)) > 1


def test_over_is_not_broken_off(env: TextEnv) -> None:
    env.reset(seed=0)
    *_, terminated, truncated, info = env.step("<answer>nobody</answer>")
    assert (terminated, truncated, info["success"], info["steps"]) == (True, False, False, 1)
    env.reset()
    ends = [env.step("<search>who</search>")[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]


def test_what_else_is_known(env: TextEnv) -> None:
    observation, info = env.reset(options={"task_id": env.tasks[5].task_id, "repeat": 1})
    assert (
        info["task_id"] == env.tasks[5].task_id
        and info["task_type"] == env.tasks[5].task_type
        and info["state_key"] == observation
    )
    assert env.episode is not None and env.episode.repeat == 1 and env.render() is None
    _, _, _, _, info = env.step("nonsense")
    assert info["invalid"] == 1 and info["admissible"] == [] and info["score"] == 0.0
    env.render_mode = "ansi"
    assert env.render() == env.episode.observation


def test_environments_are_shared() -> None:
    with Environments("search", **walks.GENERATED["search"]) as environments:
        first, second = (TextEnv("search", split="train", environments=environments) for _ in range(2))
        first.reset(seed=0)
        second.reset(seed=0)
        first.close()
        assert len(first.tasks) == 3200 and second.step("<search>who</search>")[0]
        second.close()
        assert not environments._environments._open
        assert environments.open(first.tasks[0]).observation, "they are still open"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"panel": "test", "split": "train"}, "panel 'test' and split 'train': give one of the two"),
        ({"render_mode": "human"}, "render_mode 'human': 'ansi'"),
        ({"max_stps": 3}, "env.max_stps: unknown key; did you mean 'max_steps'?"),
        ({"panel": "tset", **walks.GENERATED["search"]}, "panel 'tset'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        TextEnv("search", **given)
    assert said in str(refused.value)


def test_a_wrong_call_is_refused_in_a_line(env: TextEnv) -> None:
    with pytest.raises(UserError, match="reset first"):
        env.step("<search>who</search>")
    with pytest.raises(UserError, match="reset: nowhere/1 is none of the 700 tasks here"):
        env.reset(options={"task_id": "nowhere/1"})
    with pytest.raises(UserError, match="unknown option task; there are task_id and repeat"):
        env.reset(options={"task": 1})
    with Environments("search") as environments, pytest.raises(UserError, match="theirs are the rules"):
        TextEnv("search", environments=environments, max_steps=3)
    with Environments("search") as environments, pytest.raises(UserError, match="theirs are the rules"):
        TextEnv("webshop", environments=environments)


def test_texts_of_any_characters() -> None:
    space = UnicodeText(10, longest_sample=4, seed=0)
    assert "é漢🙂" in space and "" in space and "x" * 11 not in space and 3 not in space
    samples = [space.sample() for _ in range(200)]
    assert {len(sample) for sample in samples} == {0, 1, 2, 3, 4} and all(
        sample in space for sample in samples
    )
    assert len(space.sample(mask=(7, None))) == 7 and space == UnicodeText(10) != UnicodeText(11)


def test_without_gymnasium_it_is_said_in_a_line() -> None:
    code = "import sys; sys.modules['gymnasium'] = None\nimport paw_hpc.envs.gym"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stderr.rstrip().endswith(
        "UserError: the package gymnasium is missing, which environments as Gymnasium environments needs; "
        "pip install 'paw-hpc[gym]'"
    )
