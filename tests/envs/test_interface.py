"""The interface for other trainers: the same as the bare environments, whole in every respect, and light."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import paw_hpc.envs
from paw_hpc.envs import AsyncEnvironments, Environments, sessions
from paw_hpc.envs.base import EnvironmentFailure, EnvironmentState, Task
from paw_hpc.envs.benchmarks import make_benchmark
from paw_hpc.objective.credit import state_key
from paw_hpc.recipe import EnvSection
from paw_hpc.system.errors import DataError, RecipeError, UserError
from paw_hpc.system.seeding import derive_seed, name_seed
from tests.envs import walks
from tests.envs.pools import ME, children_of, fake_pool, gone, task

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {"plugins": [str(ROOT / "examples" / "number_game" / "number_game.py")], "max_steps": 6}


@pytest.fixture(scope="module")
def world_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated data, made once for these tests."""
    return tmp_path_factory.mktemp("interface-cache")


@pytest.fixture(autouse=True)
def _cache(world_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAW_CACHE", str(world_cache))


@pytest.fixture
def numbers() -> Iterator[Environments]:
    with Environments("number_game", **NUMBERS) as environments:
        yield environments


_WALKED: dict[str, list[walks.Walk]] = {}


def walked(benchmark: str) -> list[walks.Walk]:
    """Walks on the bare environments, once for all interfaces."""
    if benchmark not in _WALKED:
        _WALKED[benchmark] = walks.walk_bare(
            benchmark, walks.GENERATED[benchmark], 12 if benchmark == "alfworld" else 36
        )
    return _WALKED[benchmark]


@pytest.mark.parametrize("interface", walks.INTERFACES)
@pytest.mark.parametrize("benchmark", walks.GENERATED)
def test_the_same_walks_through_each_interface(benchmark: str, interface: str) -> None:
    if interface in walks.NEEDS:
        pytest.importorskip(walks.NEEDS[interface])
    done = walked(benchmark)
    assert any(walk.states[-1].success for walk in done) and any(not walk.states[-1].success for walk in done)
    assert (
        walks.differences(done, walks.INTERFACES[interface](benchmark, walks.GENERATED[benchmark], done))
        == []
    )


def _other_character(state: EnvironmentState) -> EnvironmentState:
    return dataclasses.replace(state, observation=state.observation.replace("e", "ë", 1))


def _other_reward(state: EnvironmentState) -> EnvironmentState:
    return dataclasses.replace(state, reward=state.reward + 1e-9)


def _other_end(state: EnvironmentState) -> EnvironmentState:
    return dataclasses.replace(state, success=not state.success)


@pytest.mark.parametrize("change", [_other_character, _other_reward, _other_end])
@pytest.mark.parametrize("interface", walks.INTERFACES)
def test_a_changed_character_reward_or_end_is_told(
    interface: str, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the second answer of one episode is another, behind each interface and not on the bare
    environments."""
    if interface in walks.NEEDS:
        pytest.importorskip(walks.NEEDS[interface])
    done, opened = walked("search"), list[Any]()
    episode = next(
        number
        for number, walk in enumerate(done)
        if len(walk.actions) > 1 and "e" in walk.states[2].observation
    )

    class Changed:
        """A session whose second answer is changed."""

        def __init__(self, session: Any):
            self._session, self._steps = session, 0

        async def reset(self) -> EnvironmentState:
            return await self._session.reset()

        async def step(self, action: str) -> EnvironmentState:
            self._steps += 1
            state = await self._session.step(action)
            return change(state) if self._steps == 2 else state

        async def close(self) -> None:
            await self._session.close()

    def made(env: EnvSection) -> Any:
        benchmark = make_benchmark(env)
        own = benchmark.open

        async def open_changed(task: Task, members: int) -> list[Any]:
            found = list(await own(task, members))
            if task == done[episode].task and members > done[episode].repeat and not opened:
                opened.append(found[done[episode].repeat])
                found[done[episode].repeat] = Changed(opened[0])
            return found

        benchmark.open = open_changed  # type: ignore[method-assign]
        return benchmark

    monkeypatch.setattr(sessions, "make_benchmark", made)
    found = walks.differences(done, walks.INTERFACES[interface]("search", walks.GENERATED["search"], done))
    assert opened and len(found) == 1 and "step 2: " in found[0], found


def test_nothing_heavy_is_imported() -> None:
    """Neither by the interface, nor by playing: a trainer brings its own torch."""
    code = (
        "import sys, paw_hpc.envs as envs\n"
        "bare = set(sys.modules)\n"
        "assert not [m for m in bare if m.startswith('paw_hpc.') and m != 'paw_hpc.envs'], 'the package "
        "itself imports something'\n"
        "for name in envs.__all__: getattr(envs, name)\n"
        "for benchmark, keys in __import__('json').loads(sys.argv[1]).items():\n"
        "    with envs.Environments(benchmark, **keys) as environments:\n"
        "        environments.open(environments.panel().tasks[0]).step('look')\n"
        "print(sorted({'torch', 'transformers', 'megatron', 'tokenizers', 'matplotlib', 'pyarrow'} & "
        "set(sys.modules)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, json.dumps(walks.GENERATED)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.stdout == "[]\n", ended.stdout + ended.stderr


def test_the_names_are_there() -> None:
    assert set(paw_hpc.envs.__all__) <= set(dir(paw_hpc.envs))
    assert all(getattr(paw_hpc.envs, name).__name__ == name for name in paw_hpc.envs.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Environment'"):
        paw_hpc.envs.Environment  # noqa: B018


def test_an_episode_tells_all_there_is(numbers: Environments) -> None:
    asked = numbers.panel().tasks[3]
    episode = numbers.open(asked, repeat=2)
    hidden = 1 + derive_seed(0, asked.task_id) % 20
    assert (episode.task, episode.repeat, episode.steps, episode.done) == (asked, 2, 0, False)
    assert episode.observation == "I think of a number between 1 and 20." == episode.state_key
    assert episode.seed == derive_seed(0, "eval", 0, name_seed(asked.task_id), 2), "as `paw eval` seeds it"
    assert episode.step("nonsense").observation == "Say a number."
    assert episode.respond(f"I guess {hidden}!").success
    assert (episode.steps, episode.invalid, episode.episode_return, episode.score, episode.done) == (
        2,
        0,
        10.0,
        1.0,
        True,
    )
    outcome = episode.outcome()
    assert (outcome.task_id, outcome.repeat, outcome.seed, outcome.success, outcome.steps) == (
        asked.task_id,
        2,
        episode.seed,
        True,
        2,
    )
    with pytest.raises(UserError, match="this episode is over; reset it, or open another"):
        episode.step("1")
    assert episode.reset().observation.startswith("I think") and (
        episode.steps,
        episode.episode_return,
        episode.done,
    ) == (0, 0.0, False)
    episode.close()
    with pytest.raises(UserError, match="this episode is closed"):
        episode.step("1")


def test_an_episode_that_was_left_has_failed(numbers: Environments) -> None:
    episode = numbers.open(numbers.panel().tasks[0])
    episode.step("1")
    assert episode.score > 0
    outcome = episode.outcome()
    assert (outcome.success, outcome.score, outcome.steps) == (False, 0.0, 1), "as an evaluation scores it"


@pytest.mark.parametrize(
    ("benchmark", "action", "valid"),
    [
        ("webshop", "search[red shoes]", True),
        ("webshop", "search[<your query>]", False),
        ("webshop", "click[buy now]", False),
        ("webshop", "red shoes", False),
        ("search", "<search>who</search>", True),
        ("search", "<answer>nobody</answer>", True),
        ("search", "who", False),
        ("search", "<search>who</search> <answer>nobody</answer>", False),
    ],
)
def test_invalid_actions_are_counted(benchmark: str, action: str, valid: bool) -> None:
    with Environments(benchmark, **walks.GENERATED[benchmark]) as environments:
        episode = environments.open(environments.panel().tasks[0])
        assert episode.admits(action) == valid
        episode.step(action)
        assert episode.invalid == (not valid)


def test_invalid_responses_are_counted_by_the_rules() -> None:
    said = "<action>search[red shoes]</action>"
    for rules, invalid in (({}, 1), ({"prompt": "compact"}, 1)):
        with Environments("webshop", **walks.GENERATED["webshop"], **rules) as environments:
            episode = environments.open(environments.panel().tasks[0])
            assert environments.env.prompt in ("paper", "compact") and episode.messages()[0]["role"] == "user"
            episode.respond(said)
            assert episode.invalid == invalid
            episode.respond(f"<think>so</think>{said}")
            assert episode.invalid == invalid + 1, "the page of results offers no search"


def test_the_key_of_a_state_is_that_which_gigpo_groups_by() -> None:
    for walk in walked("webshop")[:6]:
        with Environments("webshop", **walks.GENERATED["webshop"]) as environments:
            episode = environments.open(walk.task, repeat=walk.repeat)
            view = make_benchmark(environments.env).view(walk.task, episode.seed)
            view.start(walk.states[0])
            keys = [episode.state_key]
            for action, state in zip(walk.actions, walk.states[1:], strict=True):
                assert keys[-1] == state_key(view.anchor(), episode.admissible)
                episode.step(action)
                view.observe(action, state)
                keys.append(episode.state_key)
            assert len(set(keys)) > 1


def test_members_of_a_group_are_episodes_of_their_own() -> None:
    """And a later member is the same, whether it is opened alone or with those before it."""
    with Environments("webshop", **walks.GENERATED["webshop"]) as environments:
        goal = environments.panel().tasks[0]
        group = environments.open_group(goal, 4)
        pages = [episode.step("search[<r>]").observation for episode in group]
        assert len(set(pages)) > 1, "their chance is their own"
        assert environments.open(goal, repeat=3).step("search[<r>]").observation == pages[3] != pages[0]
        assert environments.open_group(goal, 2, first=2)[1].step("search[<r>]").observation == pages[3]
        with pytest.raises(UserError, match="0 episodes from number 0 on"):
            environments.open_group(goal, 0)


def test_a_batch_is_stepped_together(numbers: Environments) -> None:
    tasks = numbers.panel().tasks[:3]
    batch = numbers.open_batch(tasks, members=2)
    assert [episode.task for episode in batch.episodes] == [one for one in tasks for _ in range(2)]
    said = batch.step(["1", None, "1", "1", "1", "1"])
    assert said[1] is None and batch.episodes[1].steps == 0 and all(state is not None for state in said[2:])
    batch.respond([None, "I say 3", None, None, None, None])
    assert batch.episodes[1].steps == 1
    with pytest.raises(UserError, match="2 actions for 6 episodes"):
        batch.step(["1", "2"])
    while not batch.done:
        batch.step([None if episode.done else "20" for episode in batch.episodes])
    with pytest.raises(UserError, match="test-000: an action for an episode that is over; give None for it"):
        batch.step(["1"] * 6)
    assert all(state.observation.startswith("I think") for state in batch.reset()) and not batch.done
    batch.close()


class Fragile:
    """A benchmark of pools whose engines die, hang or raise when they are told to."""

    source = "fake engines"

    def __init__(self, env: EnvSection):
        self._pool = fake_pool(timeout_s=1.0)

    def view(self, task: Task, seed: int) -> Any:
        raise AssertionError("nobody asked for a prompt")

    async def open(self, task: Task, members: int) -> Any:
        return await self._pool.open(task, members)

    async def close(self) -> None:
        await self._pool.close()


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "make_benchmark", Fragile)


def test_what_breaks_one_episode_breaks_no_other(fragile: None) -> None:
    with Environments("alfworld") as environments:
        batch = environments.open_batch([task("a"), task("b")])
        first, second = batch.episodes
        said = batch.step(["die", "walk"])
        assert said[0] is None and said[1] is not None
        assert (first.failed, first.done, second.failed, second.done) == (True, True, False, False)
        with pytest.raises(UserError, match="the environment broke this episode, so it has no outcome"):
            first.outcome()
        assert batch.step([None, "walk"])[1] is not None and second.steps == 2
        with pytest.raises(EnvironmentFailure, match="b, step 3, action 'die'"):
            second.step("die")
        assert second.failed and second.reset().observation and not second.failed
    assert gone(children_of(ME, recursive=True)) == []


def test_a_batch_that_cannot_be_opened_leaves_nothing(fragile: None) -> None:
    with Environments("alfworld") as environments:
        with pytest.raises(EnvironmentFailure, match="broken"):
            environments.open_batch([task("a"), task("broken", load="raise"), task("c")])
        assert not environments._environments._open
    assert gone(children_of(ME, recursive=True)) == []


def test_a_group_whose_reset_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = list[int]()

    class Second:
        """A session of which the second cannot be reset."""

        def __init__(self, number: int):
            self._number = number

        async def reset(self) -> EnvironmentState:
            if self._number == 1:
                raise EnvironmentFailure("no second one")
            return EnvironmentState("here")

        async def close(self) -> None:
            closed.append(self._number)

    class Bench:
        source = "seconds"

        async def open(self, task: Task, members: int) -> list[Second]:
            return [Second(number) for number in range(members)]

        async def close(self) -> None:
            pass

    monkeypatch.setattr(sessions, "make_benchmark", lambda env: Bench())
    with Environments("alfworld") as environments:
        with pytest.raises(EnvironmentFailure, match="no second one"):
            environments.open_group(task("a"), 3)
        assert closed == [0, 1, 2] and not environments._environments._open


def test_closing_ends_every_process() -> None:
    environments = Environments("alfworld", **walks.GENERATED["alfworld"])
    episodes = environments.open_group(walked("alfworld")[0].task, 3)
    here = children_of(ME, recursive=True)
    assert len(here) >= 3 and all(isinstance(p, psutil.Process) for p in here)
    environments.close()
    assert gone(here) == []
    environments.close()
    with pytest.raises(UserError, match="these environments are closed"):
        episodes[0].reset()


def test_an_episode_that_is_over_holds_no_process() -> None:
    with Environments("alfworld", **walks.GENERATED["alfworld"]) as environments:
        walk = walked("alfworld")[0]
        episode = environments.open(walk.task)
        before = len(children_of(ME, recursive=True))
        for action in walk.actions:
            episode.step(action)
        ended = [p for p in children_of(ME, recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        assert episode.done and not environments._environments._open
        assert len(gone(ended, within_s=2.0)) < before


@pytest.mark.parametrize("benchmark", ["webshop", "search"])
def test_threads_may_call_at_once(benchmark: str) -> None:
    done = walked(benchmark)
    with (
        Environments(benchmark, **walks.GENERATED[benchmark]) as environments,
        ThreadPoolExecutor(6) as threads,
    ):

        def play(walk: walks.Walk) -> list[EnvironmentState]:
            episode = environments.open(walk.task, repeat=walk.repeat)
            return [episode.state, *[episode.step(action) for action in walk.actions]]

        assert walks.differences(done, list(threads.map(play, done))) == []


def test_it_may_be_called_where_a_loop_runs() -> None:
    """As in a notebook."""

    async def cell() -> bool:
        with Environments("search", **walks.GENERATED["search"]) as environments:
            return environments.open(environments.panel().tasks[0]).step("<search>who</search>").done

    assert asyncio.run(cell()) is False


def test_a_step_that_is_cancelled_ends_its_episode(fragile: None) -> None:
    async def test() -> None:
        async with AsyncEnvironments("alfworld") as environments:
            episode = await environments.open(task("a"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(episode.step("hang"), 0.2)
            assert episode.failed and episode.done

    asyncio.run(test())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"benchmark": "alfwrld"}, "'alfwrld' is no benchmark; expected 'alfworld', 'webshop' or 'search'"),
        ({"benchmark": "webshop", "max_step": 3}, "env.max_step: unknown key; did you mean 'max_steps'?"),
        (
            {"benchmark": "webshop", "webshop": {"catalogue": "tiny"}},
            "env.webshop.catalogue: Input should be",
        ),
        ({"benchmark": "webshop", "games": "official"}, "games: a key of alfworld"),
        ({"benchmark": "webshop", "name": "search"}, "name: the benchmark is the first argument"),
        ({"benchmark": "webshop", "protocol": "theirs"}, "protocol 'theirs': one of reference, ours"),
        (
            {"benchmark": "number_game", "protocol": "ours", **NUMBERS},
            "protocol 'ours': number_game has none; leave it out",
        ),
        ({"benchmark": "number_game", "plugins": ["nowhere.py"]}, "nowhere.py: no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        AsyncEnvironments(**given)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_protocol_is_taken_whole_and_keys_go_over_it() -> None:
    whole = AsyncEnvironments("search", protocol="reference").env
    assert (whole.max_steps, whole.validity, whole.search.retriever, whole.search.data) == (
        4,
        "format",
        "http",
        "official",
    )
    changed = AsyncEnvironments("search", protocol="reference", max_steps=3, search={"data": "generated"}).env
    assert (changed.max_steps, changed.validity, changed.search.retriever, changed.search.data) == (
        3,
        "format",
        "http",
        "generated",
    )


def test_an_unknown_panel_is_named(numbers: Environments) -> None:
    with (
        Environments("search", **walks.GENERATED["search"]) as environments,
        pytest.raises(DataError, match="panel 'tset'"),
    ):
        environments.panel("tset")
    assert numbers.panel().name == "test" and len(numbers.tasks("train")) == 64
    with pytest.raises(UserError, match="an action is a string, and this is a int"):
        numbers.open(numbers.tasks("train")[0]).step(3)  # type: ignore[arg-type]
