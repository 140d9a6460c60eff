"""Environment workers: members share a load, processes never outlive their use, and whatever breaks is named,
killed and replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from paw_hpc.envs import pool as pool_module
from paw_hpc.envs.base import EnvironmentFailure
from tests.envs.pools import (
    ME,
    ROOT,
    children_of,
    fake_pool,
    fields,
    gone,
    play,
    run,
    started,
    task,
    workers_of,
)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


class TestEpisodes:
    def test_of_a_group_share_one_load_and_nothing_else(self) -> None:
        async def test() -> None:
            async with started() as pool:
                sessions = await pool.open(task("kitchen"), 4)
                starts = [fields(await s.reset()) for s in sessions]
                assert len({(name, steps, loader) for name, steps, loader, _ in starts}) == 1
                await play(sessions[0], "look", "look")
                after = [fields(await s.step("look")) for s in sessions]
                assert [steps for _, steps, _, _ in after] == [3, 1, 1, 1]
                assert {loader for _, _, loader, _ in after} == {starts[0][2]}
                assert len({player for _, _, _, player in after}) == 4

        run(test)

    def test_end_when_won_or_at_the_last_step(self) -> None:
        async def test() -> None:
            async with started(max_steps=2) as pool:
                winner, loser = await pool.open(task(), 2)
                won = await play(winner, "win")
                assert (won.done, won.success, won.reward, won.score) == (True, True, 10.0, 1.0)
                first = await play(loser, "look")
                assert (first.done, first.success, first.reward) == (False, False, 0.0)
                last = await loser.step("look")
                assert (last.done, last.success, last.reward, last.score) == (True, False, 0.0, 0.0)
                assert last.observation == last.observation.strip() and last.admissible == (
                    "hang",
                    "look",
                    "win",
                )

        run(test)

    def test_do_not_wait_for_each_other(self) -> None:
        async def test() -> None:
            async with started() as pool:
                slow, fast = await pool.open(task(), 2)
                waiting = asyncio.create_task(slow.step("hang"))
                await asyncio.wait_for(play(fast, *["look"] * 20), 3)
                assert not waiting.done()
                waiting.cancel()

        run(test)


class TestWorkers:
    def test_are_as_many_as_asked_for_however_many_games_open_at_once(self) -> None:
        async def test() -> None:
            async with started(workers=2) as pool:
                opened = await asyncio.gather(*[pool.open(task(f"g{i}"), 1) for i in range(8)])
                assert {fields(await s.reset())[0] for [s] in opened} == {f"g{i}" for i in range(8)}
                assert len(workers_of(pool)) == 2
                assert sorted(p.pid for p in children_of(ME)) == sorted(workers_of(pool))

        run(test)

    def test_never_load_two_games_at_once(self) -> None:
        """One worker, and a group whose members never arrive while another game is loading: its failure must
        not free the busy worker."""

        async def test() -> None:
            async with started(timeout_s=1.0) as pool:
                await pool.open(task("first"), 1)
                silent = asyncio.create_task(pool.open(task("silent", load="nonsense"), 2))
                await asyncio.sleep(0.4)
                slow = [asyncio.create_task(pool.open(task(f"slow{i}", load="slowly"), 1)) for i in range(3)]
                with pytest.raises(EnvironmentFailure, match="silent"):
                    await silent
                opened = [(await s)[0] for s in slow]
                assert [fields(await s.reset())[0] for s in opened] == ["slow0", "slow1", "slow2"]
                assert pool._idle.qsize() == 1

        run(test)

    def test_are_not_lost_to_cancelled_calls(self) -> None:
        async def test() -> None:
            async with started(workers=2) as pool:
                [session] = await pool.open(task(), 1)
                await session.close()
                before = workers_of(pool)
                for wait_s in (0.0, 0.001, 0.01, 0.05, 0.2, 0.5):
                    calls = [
                        asyncio.create_task(
                            pool.open(task(f"x{i}", load="slowly" if wait_s > 0.1 else "well"), 2)
                        )
                        for i in range(3)
                    ]
                    await asyncio.sleep(wait_s)
                    for call in calls:
                        call.cancel()
                    for outcome in await asyncio.gather(*calls, return_exceptions=True):
                        # opened before it was cancelled
                        for session in outcome if isinstance(outcome, list) else []:
                            await session.close()
                opened = await asyncio.gather(*[pool.open(task(f"g{i}"), 2) for i in range(5)])
                for i, sessions in enumerate(opened):
                    assert [fields(await s.step("look"))[0] for s in sessions] == [f"g{i}"] * 2
                assert workers_of(pool) == before and not pool._arrivals
                for sessions in opened:
                    for session in sessions:
                        await session.close()
                while pool._orders:
                    await asyncio.sleep(0.02)
                assert pool._idle.qsize() == 2
                # The members of cancelled calls were sent away, too.
                assert (
                    await asyncio.to_thread(
                        gone, [p for p in children_of(ME, recursive=True) if p.pid not in before]
                    )
                    == []
                )

        run(test)

    def test_die_idle_and_are_replaced_without_a_loss(self) -> None:
        async def test() -> None:
            async with started(workers=2) as pool:
                await pool.open(task(), 1)
                for pid in (before := workers_of(pool)):
                    os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.1)
                opened = await asyncio.gather(*[pool.open(task(f"g{i}"), 1) for i in range(4)])
                assert [fields(await s.reset())[0] for [s] in opened] == [f"g{i}" for i in range(4)]
                assert len(workers_of(pool)) == 2 and not set(workers_of(pool)) & set(before)

        run(test)

    def test_die_over_a_game_which_then_failed_and_its_episodes_elsewhere_play_on(self) -> None:
        async def test() -> None:
            async with started() as pool:
                [living] = await pool.open(task("living"), 1)
                loading = asyncio.create_task(pool.open(task("loading", load="slowly"), 1))
                await asyncio.sleep(0.3)
                os.kill(workers_of(pool)[0], signal.SIGKILL)
                with pytest.raises(EnvironmentFailure, match="loading: the environment process has died"):
                    await loading
                assert fields(await living.step("look"))[:2] == ("living", 1)
                [after] = await pool.open(task("after"), 1)
                assert fields(await after.reset())[0] == "after"

        run(test)

    def test_that_can_never_start_are_given_up(self, capfd: pytest.CaptureFixture[str]) -> None:
        async def test() -> None:
            async with started(factory="tests.envs.fake_engine:NoSuchEngine") as pool:
                outcomes = await asyncio.gather(
                    pool.open(task("a"), 1), pool.open(task("b"), 1), return_exceptions=True
                )
                assert all(
                    isinstance(o, EnvironmentFailure) and "workers have died" in str(o) for o in outcomes
                )
                assert str(outcomes[0]).startswith("a: ")

        run(test)
        assert "NoSuchEngine" in capfd.readouterr().err

    def test_hang_after_a_load_and_are_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool_module, "GRACE_S", 0.3)

        async def test() -> None:
            async with started(timeout_s=1.0) as pool:
                await pool.open(task(), 1)
                [worker] = [psutil.Process(pid) for pid in workers_of(pool)]
                worker.suspend()
                with pytest.raises(EnvironmentFailure, match=r"g2: no answer in 1\.3 s"):
                    await pool.open(task("g2"), 1)
                assert await asyncio.to_thread(gone, [worker]) == []
                [after] = await pool.open(task("after"), 1)
                assert fields(await after.reset())[0] == "after"

        run(test)

    def test_leave_signals_to_the_trainer(self) -> None:
        async def test() -> None:
            async with started() as pool:
                [session] = await pool.open(task(), 1)
                await session.reset()
                for process in children_of(ME, recursive=True):
                    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                        process.send_signal(number)
                await asyncio.sleep(0.1)
                assert fields(await session.step("look"))[1] == 1
                [another] = await pool.open(task("another"), 1)
                assert fields(await another.reset())[0] == "another"

        run(test)


class TestFailures:
    @pytest.mark.parametrize(
        ("how", "reason"),
        [
            ("raise", "ValueError: line one of the reason no such receptacle"),
            ("crash", "the game process died while it loaded the game"),
            ("never", "the game did not load in 1 s"),
            ("nonsense", "no answer in 1 s"),
        ],
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_to_load_name_the_task_and_leave_the_pool_whole(self, how: str, reason: str, first: bool) -> None:
        """Also as the very first game of a worker, with which it fills its caches."""

        async def test() -> None:
            async with started(timeout_s=1.0) as pool:
                if not first:
                    await pool.open(task(), 1)
                with pytest.raises(EnvironmentFailure) as failure:
                    await pool.open(task("train/pick/t7", load=how), 2)
                assert str(failure.value) == f"train/pick/t7: {reason}"
                pids = workers_of(pool)
                [session] = await pool.open(task("next"), 1)
                assert fields(await session.step("look"))[:2] == ("next", 1)
                assert workers_of(pool) == pids

        run(test)

    def test_a_game_that_hangs_while_it_loads_is_killed(self) -> None:
        async def test() -> None:
            async with started(timeout_s=0.5) as pool:
                await pool.open(task(), 2)
                hanging = asyncio.create_task(pool.open(task("h", load="never"), 1))
                await asyncio.sleep(0.25)
                [worker] = [p for p in children_of(ME) if p.pid in workers_of(pool)]
                processes = children_of(worker, recursive=True)
                with pytest.raises(EnvironmentFailure):
                    await hanging
                assert len(processes) == 4, "a game, its two episodes, and the game that hangs"
                left = await asyncio.to_thread(gone, processes, 0.5)
                assert len(left) == 3  # the first game and its two episodes live on

        run(test)

    @pytest.mark.parametrize(
        ("action", "reason"), [("hang", "no answer in 1 s"), ("die", "has died"), ("raise", "has died")]
    )
    def test_of_a_step_name_task_step_and_action_and_end_that_episode_only(
        self, action: str, reason: str
    ) -> None:
        async def test() -> None:
            async with started(timeout_s=1.0) as pool:
                broken, whole = await pool.open(task("t9"), 2)
                player = psutil.Process(fields(await broken.step("look"))[3])
                with pytest.raises(EnvironmentFailure, match=rf"^t9, step 2, action '{action}': .*{reason}"):
                    await broken.step(action)
                assert await asyncio.to_thread(gone, [player]) == []
                assert fields(await whole.step("look"))[:2] == ("t9", 1)
                with pytest.raises(EnvironmentFailure):
                    await broken.step("look")

        run(test)

    def test_of_the_caller_to_close_leave_no_process(self) -> None:
        async def test() -> None:
            pool = fake_pool()
            sessions = await pool.open(task(), 3)
            hung = asyncio.create_task(sessions[0].step("hang"))
            loading = asyncio.create_task(pool.open(task("l", load="never"), 1))
            await asyncio.sleep(0.3)
            assert len(children_of(ME, recursive=True)) == 6  # worker, two games, three episodes
            start = time.monotonic()
            await pool.close()
            assert time.monotonic() - start < 2
            with pytest.raises(EnvironmentFailure):
                await hung
            with pytest.raises(asyncio.CancelledError):
                await loading
            await sessions[1].close()

        run(test)

    def test_do_not_keep_a_closed_pool_from_opening_again(self) -> None:
        async def test() -> None:
            pool = fake_pool()
            for _ in range(2):
                [session] = await pool.open(task(), 1)
                assert (await play(session, "win")).success
                await pool.close()
            await pool.close()

        run(test)

    def test_of_a_temporary_folder_with_a_long_name_are_avoided(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deep = tmp_path / ("d" * 60) / ("e" * 60)
        deep.mkdir(parents=True)
        monkeypatch.setattr("tempfile.tempdir", str(deep))

        async def test() -> None:
            async with started() as pool:
                assert (await play((await pool.open(task(), 1))[0], "win")).success

        run(test)


def test_games_that_have_ended_are_collected_though_no_other_is_opened() -> None:
    async def test() -> None:
        async with started() as pool:
            sessions = [
                session for number in range(3) for session in await pool.open(task(str(number)), 1 + number)
            ]
            [worker] = children_of(ME)
            assert len(children_of(worker)) == 3
            for session in sessions:
                await session.close()
            for _ in range(100):
                if not children_of(worker):  # zombies, too, are a process's children
                    break
                await asyncio.sleep(0.1)
            assert not children_of(worker)
            assert (await play((await pool.open(task(), 1))[0], "win")).success

    run(test)


TRAINER = """
import asyncio, sys
from tests.envs.pools import fake_pool, task

async def main():
    pool = fake_pool(workers=2)
    idle, hung = await pool.open(task(), 2)
    asyncio.create_task(hung.step("hang"))
    asyncio.create_task(pool.open(task("l", load="never"), 1))
    await asyncio.sleep(0.5)
    print("playing", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_nothing_outlives_a_trainer_that_was_killed(tmp_path: Path) -> None:
    """Not even an episode that hangs in a step, a game that hangs while it loads, or the folder of the
    sockets."""
    where = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER], stdout=subprocess.PIPE, cwd=ROOT, env=where
    ) as trainer:
        try:
            assert trainer.stdout is not None and trainer.stdout.readline() == b"playing\n"
            children = children_of(psutil.Process(trainer.pid), recursive=True)
            assert list(tmp_path.iterdir())
        finally:
            trainer.kill()
    assert len(children) == 6  # two workers, two games, two episodes
    assert gone(children) == []
    assert list(tmp_path.iterdir()) == []
