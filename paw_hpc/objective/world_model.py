"""The world-model half of PaW: which transitions are learnt from, with which loss, and how strongly ("the
paper": arXiv 2606.02388, eq. 4, 7-11).

N transitions, A action tokens, R rows, E episodes, G groups. Functions of whole updates reduce in float64.
"""

from __future__ import annotations

import torch

from paw_hpc.system.seeding import generator

# ------------------------------------------------------------------------------------ eq. 4: what is selected


def token_entropy_mean(entropy: torch.Tensor, sample: torch.Tensor, n: int) -> torch.Tensor:
    """H(a|h) as the mean entropy of the token distributions of an action (eq. 4, as the paper's text has it).

    Args:
        entropy: float[A], nats, full vocabulary.
        sample: int64[A], the transition of each action token.
        n: number of transitions.

    Returns: float64[n]; 0 for a transition without action tokens.
    """
    total = torch.zeros(n, dtype=torch.float64).index_add(0, sample, entropy.double())
    return total / torch.bincount(sample, minlength=n).clamp(min=1)


def sampled_token_entropy_mean(logp: torch.Tensor, sample: torch.Tensor, n: int) -> torch.Tensor:
    """H(a|h) as the formula of eq. 4 reads literally: the mean of -q log q, q the probability of the
    *sampled* token.

    Args:
        logp: float[A], log-prob of each sampled token.
        sample, n: as in `token_entropy_mean`.

    Returns: float64[n].
    """
    logp = logp.double()
    return token_entropy_mean(-logp.exp() * logp, sample, n)


def select_top_entropy(entropy: torch.Tensor, alpha: float) -> torch.Tensor:
    """The most uncertain fraction of the whole update: exactly round(alpha * N) kept, ties to the lower index
    (eq. 4). float[N] -> bool[N]."""
    order = torch.argsort(entropy, descending=True, stable=True)
    return _mask(order, len(entropy), alpha)


def select_random(n: int, alpha: float, run_seed: int, update: int) -> torch.Tensor:
    """The control of `select_top_entropy`: as many transitions, drawn without regard to entropy. bool[n], a
    function of its arguments."""
    order = torch.from_numpy(generator(run_seed, "wm.selection", update).permutation(n))
    return _mask(order, n, alpha)


def _mask(order: torch.Tensor, n: int, alpha: float) -> torch.Tensor:
    selected = torch.zeros(n, dtype=torch.bool)
    selected[order[: round(alpha * n)]] = True
    return selected


# ------------------------------------------------------------------------------- eq. 7-9: the loss of a token


def clipped_mae(logp: torch.Tensor, rho: float) -> torch.Tensor:
    """m * (1 - p) with p = exp(logp) and m = 1[p <= rho] (eq. 7-9), elementwise, float[R] -> float[R].

    The mask carries no gradient; where it is 1 the target logit's gradient is -p(1 - p). The mean over an
    observation divides by *all* its tokens, masked ones too; that divisor is part of the row weight (`plan`).
    """
    p = logp.exp()
    return torch.where(p.detach() <= rho, 1.0 - p, 0.0)


def mae(logp: torch.Tensor) -> torch.Tensor:
    """1 - p, the clipped MAE without clipping, elementwise."""
    return 1.0 - logp.exp()


def cross_entropy(logp: torch.Tensor) -> torch.Tensor:
    """-log p, elementwise (the paper's ablation)."""
    return -logp


# ---------------------------------------------------------------------- eq. 10 and 11: how strongly it counts


def reward_adaptive_coefficient(returns: torch.Tensor, group: torch.Tensor, r_max: float) -> torch.Tensor:
    """lambda_g = 1 - mean return of the group / R_max, clamped to [0, 1] (eq. 10).

    Args:
        returns: float[E], clean episode returns (without penalties).
        group: int64[E], 0 .. G-1, each at least once.
        r_max: return of a success, above 0.

    Returns: float64[G].
    """
    if r_max <= 0:
        raise ValueError(f"r_max must be positive, got {r_max}")
    count = torch.bincount(group)
    total = torch.zeros(len(count), dtype=torch.float64).index_add(0, group, returns.double())
    return (1.0 - total / count / r_max).clamp(0.0, 1.0)


def transition_weights(
    selected: torch.Tensor, group: torch.Tensor, coefficient: torch.Tensor
) -> torch.Tensor:
    """w_n = lambda_g / (|G| |S_g|) for a selected transition of group g, else 0 (eq. 11).

    |G| counts all groups of the update, also those without a selected transition, whose world-model term
    drops out.

    Args:
        selected: bool[N].
        group: int64[N].
        coefficient: float[G], lambda.

    Returns: float64[N]; sums to (1/|G|) * the sum of lambda over groups with a selected transition.
    """
    per_group = torch.bincount(group[selected], minlength=len(coefficient)).clamp(min=1)
    weight = coefficient.double() / (len(coefficient) * per_group)
    return torch.where(selected, weight[group], 0.0)


def token_weights(
    selected: torch.Tensor, group: torch.Tensor, coefficient: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """w_n = lambda_g * T_n / T for a selected transition, else 0: every observation token of the update
    counts the same (ECHO's normalizer).

    Args:
        selected: bool[N].
        group: int64[N].
        coefficient: float[G], lambda.
        lengths: int64[N], T_n: tokens of the observation that a transition is trained on; T is their sum over
            the selected transitions.

    Returns: float64[N], the weight of the mean over the transition's tokens, as `transition_weights` gives
    it.
    """
    lengths = torch.where(selected, lengths, 0).double()
    return coefficient.double()[group] * lengths / lengths.sum().clamp(min=1.0)
