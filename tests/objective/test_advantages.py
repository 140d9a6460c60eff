"""Each estimator against literal numbers worked out by hand, and against the slow reading on random data."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paw_hpc.objective import advantages
from tests.factories import random_pool
from tests.objective import slow


def f64(*xs: float) -> torch.Tensor:
    return torch.tensor(xs, dtype=torch.float64)


def i64(*xs: int) -> torch.Tensor:
    return torch.tensor(xs)


def close(a: torch.Tensor, b: torch.Tensor | list[float], tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=tolerance, atol=tolerance)


def gigpo(
    returns, rewards, group, anchor, *, episode, step, omega=1.0, gamma=0.95, normalize_std=True
) -> torch.Tensor:
    """GiGPO over episodes, put together from its two parts."""
    episode_group = torch.zeros(len(returns), dtype=torch.long).index_copy(0, episode, group)
    to_go = advantages.returns_to_go(rewards, episode, step, gamma)
    of_state = advantages.gigpo_steps(to_go, group, anchor, normalize_std=normalize_std)
    return advantages.grpo(returns, episode_group, normalize_std)[episode] + omega * of_state


def test_grpo_by_hand() -> None:
    # Group 0: mean 5, squared deviations 4 * 25, std sqrt(100 / 3) = 5.773502692; 5 / 5.773503692 =
    # 0.866025254. Group 1: no contrast.
    result = advantages.grpo(f64(10, 0, 4, 0, 10, 4), i64(0, 0, 1, 0, 0, 1))
    close(result, [0.866025254, -0.866025254, 0.0, -0.866025254, 0.866025254, 0.0])
    close(
        advantages.grpo(f64(10, 0, 4, 0, 10, 4), i64(0, 0, 1, 0, 0, 1), normalize_std=False),
        [5.0, -5.0, 0.0, -5.0, 5.0, 0.0],
    )


def test_a_group_without_contrast_gives_exactly_zero() -> None:
    equal = f64(0.1, 0.1, 0.1)
    assert ((equal - equal.sum() / 3) != 0).all(), "the case is worth nothing unless the plain mean rounds"
    for result in (
        advantages.grpo(equal, i64(0, 0, 0)),
        advantages.rloo(equal, i64(0, 0, 0)),
        advantages.whiten(equal),
    ):
        assert result.tolist() == [0.0, 0.0, 0.0]


def test_a_single_member_gives_exactly_zero() -> None:
    assert advantages.grpo(f64(10, 3, 1), i64(0, 1, 1))[0] == 0.0
    assert advantages.rloo(f64(10, 3, 1), i64(0, 1, 1))[0] == 0.0


def test_rloo_by_hand() -> None:
    close(advantages.rloo(f64(10, 0, 4, 1, 2), i64(0, 0, 0, 1, 1)), [10 - 2, 0 - 7, 4 - 5, 1 - 2, 2 - 1])


def test_gigpo_by_hand() -> None:
    # Episode 0 meets states a, b with rewards 0, 10; episode 1 meets a, a with nothing. gamma 0.5: returns to
    # go 5, 10 | 0, 0. State a: 5, 0, 0 -> 10/3, -5/3, -5/3, std sqrt(75 / 9) = 2.886751346. State b is met
    # once. Episodes: +-5, std 7.071067812.
    case: dict[str, Any] = {"episode": i64(0, 0, 1, 1), "step": i64(0, 1, 0, 1), "gamma": 0.5}
    given = (f64(10, 0), f64(0, 10, 0, 0), i64(0, 0, 0, 0), ["a", "b", "a", "a"])
    close(gigpo(*given, normalize_std=False, **case), [5 + 10 / 3, 5.0, -5 - 5 / 3, -5 - 5 / 3])
    close(
        gigpo(*given, **case),
        [0.707106781 + 1.154700538, 0.707106781, -0.707106781 - 0.577350269, -0.707106781 - 0.577350269],
        1e-6,
    )
    close(gigpo(*given, normalize_std=False, omega=0.3, **case), [5 + 1.0, 5.0, -5.5, -5.5])


def test_gigpo_compares_states_within_a_task_group_only() -> None:
    case: dict[str, Any] = {"episode": i64(0, 1, 2, 3), "step": i64(0, 0, 0, 0), "normalize_std": False}
    given = (f64(4, 0, 2, 0), f64(4, 0, 2, 0), i64(0, 0, 1, 1), ["a", "a", "a", "a"])
    close(gigpo(*given, **case), [2 + 2, -2 - 2, 1 + 1, -1 - 1])


def test_gigpo_with_zero_omega_is_grpo() -> None:
    pool = random_pool(3)
    result = gigpo(
        pool.returns,
        pool.rewards,
        pool.group,
        [t.anchor for t in pool.transitions],
        episode=pool.episode,
        step=pool.step,
        omega=0.0,
    )
    assert torch.equal(result, advantages.grpo(pool.returns, pool.episode_group)[pool.episode])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("by_std", [True, False])
def test_group_estimators_equal_the_slow_reading(seed: int, by_std: bool) -> None:
    pool = random_pool(seed, groups=4, members=5)
    returns = pool.returns.double() - torch.arange(len(pool.returns)) % 3 * 0.1
    rewards = pool.rewards.double() + 0.25 * pool.valid
    group = pool.episode_group.tolist()
    close(advantages.grpo(returns, pool.episode_group, by_std), slow.grpo(returns.tolist(), group, by_std))
    close(advantages.rloo(returns, pool.episode_group), slow.rloo(returns.tolist(), group))
    anchor = [t.anchor for t in pool.transitions]
    lists = (
        returns.tolist(),
        rewards.tolist(),
        pool.group.tolist(),
        anchor,
        pool.episode.tolist(),
        pool.step.tolist(),
    )
    ours = gigpo(
        returns,
        rewards,
        pool.group,
        anchor,
        episode=pool.episode,
        step=pool.step,
        omega=0.7,
        gamma=0.9,
        normalize_std=by_std,
    )
    close(ours, slow.gigpo(*lists, 0.7, 0.9, by_std))


def test_gigpo_does_not_depend_on_the_order_of_transitions() -> None:
    pool = random_pool(1, groups=4)
    anchor = [t.anchor for t in pool.transitions]
    straight = gigpo(pool.returns, pool.rewards, pool.group, anchor, episode=pool.episode, step=pool.step)
    p = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    shuffled = gigpo(
        pool.returns,
        pool.rewards[p],
        pool.group[p],
        [anchor[i] for i in p.tolist()],
        episode=pool.episode[p],
        step=pool.step[p],
    )
    torch.testing.assert_close(shuffled, straight[p])


def test_similar_anchors_by_hand() -> None:
    # difflib: "abcd" and "abcx" share 3 of 4 characters, ratio 2 * 3 / 8 = 0.75; "wxyz" shares one character
    # with "abcx" and none with "abcd".
    group, anchor = i64(0, 0, 0, 1), ["abcd", "abcx", "wxyz", "abcd"]
    assert advantages.anchor_states(group, anchor, 0.75).tolist() == [0, 0, 1, 2]
    assert advantages.anchor_states(group, anchor, 0.76).tolist() == [0, 1, 2, 3]
    assert advantages.anchor_states(group, anchor).tolist() == [0, 1, 2, 3]


def test_long_equal_anchors_are_similar() -> None:
    # difflib drops frequent characters of strings of 200 and more: its ratio of this string with itself is 0.
    assert advantages.anchor_states(i64(0, 0), ["ab" * 200, "ab" * 200], 0.9).tolist() == [0, 0]


def test_similarity_clusters_equal_a_plain_greedy_pass() -> None:
    from difflib import SequenceMatcher

    rng = torch.Generator().manual_seed(0)
    words = ["red", "mug", "on", "shelf", "blue", "cup"]
    anchor = [" ".join(words[i] for i in torch.randint(6, (4,), generator=rng).tolist()) for _ in range(40)]
    group = torch.randint(3, (40,), generator=rng)
    firsts: list[tuple[int, str]] = []
    expected = []
    for g, key in zip(group.tolist(), anchor, strict=True):
        match = [
            k
            for k, (h, first) in enumerate(firsts)
            if h == g and SequenceMatcher(None, first, key).ratio() >= 0.7
        ]
        if not match:
            firsts.append((g, key))
        expected.append(match[0] if match else len(firsts) - 1)
    assert advantages.anchor_states(group, anchor, 0.7).tolist() == expected
    assert len(set(expected)) < len(set(zip(group.tolist(), anchor, strict=True))), (
        "some distinct keys must have been joined"
    )


def test_gae_by_hand() -> None:
    # gamma = lam = 0.5. Episode 1: deltas 0 + 0.5 * 2 - 1 = 0, 0 + 0.5 * 4 - 2 = 0, 10 - 4 = 6; A = 0.375,
    # 1.5, 6. Episode 2: 0 - 3.
    dones = torch.tensor([False, False, True, True])
    advantage, target = advantages.gae(f64(0, 0, 10, 0), f64(1, 2, 4, 3), dones, 0.5, 0.5)
    close(advantage, [0.375, 1.5, 6.0, -3.0])
    close(target, [1.375, 3.5, 10.0, 0.0])


@pytest.mark.parametrize("seed", range(5))
def test_gae_equals_its_definition(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 20, generator=rng, dtype=torch.float64)
    dones = torch.rand(20, generator=rng) < 0.3
    dones[-1] = True
    advantage, target = advantages.gae(rewards, values, dones, 0.95, 0.9)
    slow_advantage, slow_target = slow.gae(rewards.tolist(), values.tolist(), dones.tolist(), 0.95, 0.9)
    close(advantage, slow_advantage)
    close(target, slow_target)


def test_whiten_by_hand() -> None:
    close(advantages.whiten(f64(1, 2, 3)), [-1.0, 0.0, 1.0], 2e-6)
