"""The data that flows: transitions, episodes, groups, the pool of one update, and the packed batch a trainer
sees.

Shapes used throughout: N transitions, E episodes, G groups, S packed sequences, T packed tokens, R scored
rows, A action tokens of a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

ACTION = 0
"""Row kind: the target is a token of the response (RL loss)."""
OBSERVATION = 1
"""Row kind: the target is a token of the next observation (world-model loss)."""


@dataclass(slots=True)
class Transition:
    """One environment step, one training sample.

    `response_ids` are exactly the ids that the engine sampled, the end-of-turn token included when it was
    sampled: text is never tokenized back. `bridge_ids` are the chat-template tokens between the response and
    the next observation; they are input but never scored.
    """

    group: int
    episode: int
    step: int
    prompt_ids: Ids
    response_ids: Ids
    response_logprobs: Floats
    """Behaviour policy, per response token, natural log, after temperature."""
    bridge_ids: Ids
    observation_ids: Ids
    """The next observation, truncated to `wm.max_observation_tokens`; empty where there is none."""
    reward: float
    """Reward of the environment at this step, without the invalid-action penalty."""
    valid: bool
    """The action was well-formed and admissible."""
    anchor: str
    """The state in which the action was taken, as its observation tells it (GiGPO groups by it)."""
    weight_version: int
    """Of the weights that sampled the response's last token."""
    admissible: tuple[str, ...] = ()
    """The actions that were admissible then, where the benchmark lists them."""
    token_versions: Ids | None = None
    """int32[len(response_ids)] where the engine's weights changed between two of its tokens; None: all are of
    `weight_version`."""
    action: str = ""
    """What the response was read as, and the environment was given."""


@dataclass(slots=True)
class Episode:
    """One play of a task. `index` counts episodes over the whole update: group * group_size + member."""

    index: int
    group: int
    task_id: str
    task_type: str
    seed: int
    transitions: list[Transition] = field(default_factory=list)
    success: bool = False
    score: float = 0.0
    """The benchmark's own score in [0, 1] (equal to success where it has none)."""
    failed_by_environment: bool = False
    """The environment broke down: counted, never scored as the agent's failure, excluded from training."""
    truncated_prompts: int = 0
    truncated_observations: int = 0

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of environment rewards, without penalties (paper, eq. 10: the return that lambda
        sees)."""
        return float(sum(t.reward for t in self.transitions))


@dataclass(slots=True)
class Group:
    """All episodes of one task instance in one update."""

    index: int
    task_id: str
    task_type: str
    episodes: list[Episode] = field(default_factory=list)


@dataclass(slots=True)
class Pool:
    """All transitions of one update in a fixed order (group, member, step), with the indices that the
    objective needs.

    `group[N]` and `episode[N]` are positions in `groups` / `episodes` (not the global indices that a
    data-parallel rank may skip over).
    """

    transitions: list[Transition]
    episodes: list[Episode]
    group: torch.Tensor  # int64[N]
    episode: torch.Tensor  # int64[N]
    step: torch.Tensor  # int64[N]
    rewards: torch.Tensor  # float32[N]
    valid: torch.Tensor  # bool[N]
    returns: torch.Tensor  # float32[E]
    episode_group: torch.Tensor  # int64[E]
    num_groups: int

    def __len__(self) -> int:
        return len(self.transitions)

    @property
    def action_sample(self) -> torch.Tensor:
        """int64[A]: the transition of each action token, in pool order."""
        lengths = torch.tensor([len(t.response_ids) for t in self.transitions], dtype=torch.long)
        return torch.repeat_interleave(torch.arange(len(self.transitions)), lengths)

    @classmethod
    def from_groups(cls, groups: Sequence[Group]) -> Pool:
        """Flatten groups. Episodes that the environment broke, and groups left without any, are dropped here
        (the collector counted them)."""
        transitions: list[Transition] = []
        episodes: list[Episode] = []
        rows: list[tuple[int, int]] = []
        episode_group: list[int] = []
        kept = 0
        for group in groups:
            playable = [e for e in group.episodes if not e.failed_by_environment and e.transitions]
            if not playable:
                continue
            for episode in playable:
                rows.extend((kept, len(episodes)) for _ in episode.transitions)
                transitions.extend(episode.transitions)
                episodes.append(episode)
                episode_group.append(kept)
            kept += 1
        index = torch.tensor(rows, dtype=torch.long).reshape(-1, 2)
        return cls(
            transitions=transitions,
            episodes=episodes,
            group=index[:, 0],
            episode=index[:, 1],
            step=torch.tensor([t.step for t in transitions], dtype=torch.long),
            rewards=torch.tensor([t.reward for t in transitions], dtype=torch.float32),
            valid=torch.tensor([t.valid for t in transitions], dtype=torch.bool),
            returns=torch.tensor([e.episode_return for e in episodes], dtype=torch.float32),
            episode_group=torch.tensor(episode_group, dtype=torch.long),
            num_groups=kept,
        )


@dataclass(slots=True)
class Scores:
    """What one no-grad pass over a pool says. Action tokens are in pool order; see `Pool.action_sample`."""

    old_logp: torch.Tensor  # float32[A], log-prob of the sampled token after temperature
    entropy: torch.Tensor  # float32[A], full-vocabulary entropy after temperature, nats
    ref_logp: torch.Tensor | None = None  # float32[A], reference policy (KL loss only)
    values: torch.Tensor | None = None
    """PPO only: float32[N], critic at the last prompt token; with `algorithm.ppo_advantages: tokens`
    float32[A], critic before each action token."""


@dataclass(slots=True)
class Batch:
    """N samples (transitions) packed without padding into S sequences, plus the R rows whose next token is
    scored.

    A sequence is one sample, or a chain: samples of one episode of which each one's prompt goes on from the
    whole of the one before, so that every token is there once. A row is the position of the hidden state that
    predicts `row_target` (the token after it). Prompt tokens and unselected observations are never rows, so
    they never reach the LM head; unselected observations are not even in `tokens`, unless a later prompt
    holds them.
    """

    tokens: torch.Tensor  # int64[T]
    position_ids: torch.Tensor  # int64[T], restarts at 0 in every sequence
    cu_seqlens: torch.Tensor  # int32[S+1]
    row_position: torch.Tensor  # int64[R], index into tokens, ascending within a sequence
    row_target: torch.Tensor  # int64[R]
    row_kind: torch.Tensor  # uint8[R], ACTION or OBSERVATION
    row_cu: torch.Tensor  # int64[N+1], rows of sample n are row_cu[n]:row_cu[n+1]
    streams: dict[str, torch.Tensor]
    """name -> float32[R]: weight, advantage, old_logp, ref_logp, ...; for a critic of tokens also
    value_target, old_value, value_weight."""
    transition: torch.Tensor  # int64[N], index into the pool
    sample_streams: dict[str, torch.Tensor] = field(default_factory=dict)
    """name -> float32[N]: value_target, old_value, value_weight of a critic of steps."""
    value_position: torch.Tensor | None = None  # int64[N], last prompt token of each sample (PPO)
    sample_cu: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """int64[S+1], samples of sequence s are sample_cu[s]:sample_cu[s+1]; default: one each."""
    rows_of_kind: torch.Tensor | None = None
    """int64[R]: how many rows of its own kind a row's sample has, where other processes hold some of them
    (context parallelism); None: count them."""

    def __post_init__(self) -> None:
        if not len(self.sample_cu):
            self.sample_cu = torch.arange(len(self.cu_seqlens), device=self.cu_seqlens.device)

    def __len__(self) -> int:
        """Samples."""
        return len(self.row_cu) - 1

    @property
    def num_sequences(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.numel())

    @property
    def num_rows(self) -> int:
        return int(self.row_target.numel())

    @property
    def lengths(self) -> torch.Tensor:
        """int64[S]: tokens of each sequence."""
        return (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).long()

    @property
    def sequence(self) -> torch.Tensor:
        """int64[N]: the sequence of each sample."""
        return torch.repeat_interleave(
            torch.arange(self.num_sequences, device=self.sample_cu.device),
            self.sample_cu[1:] - self.sample_cu[:-1],
        )

    def rows_of(self, samples: torch.Tensor) -> torch.Tensor:
        """int64: the indices of the rows of these samples (int64[n]), one sample after the other."""
        return _ranges(self.row_cu, samples.long())

    def samples_of(self, sequences: torch.Tensor) -> torch.Tensor:
        """int64: the samples of these sequences (int64[s]), one sequence after the other."""
        return _ranges(self.sample_cu, sequences.long())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: stream.to(device, non_blocking=True) for name, stream in value.items()}
            return value if value is None else value.to(device, non_blocking=True)

        return Batch(**{item.name: moved(getattr(self, item.name)) for item in fields(self)})

    def take(self, sequences: torch.Tensor) -> Batch:
        """The batch of these sequences (int64[s], any order, no repetition needed), packed anew. Streams are
        copied, not rescaled."""
        sequences = sequences.long()
        tokens_of = _ranges(self.cu_seqlens.long(), sequences)
        samples = self.samples_of(sequences)
        rows_of = _ranges(self.row_cu, samples)
        cu = offsets_of(self.lengths[sequences])
        counts = (self.sample_cu[1:] - self.sample_cu[:-1])[sequences]
        row_lengths = (self.row_cu[1:] - self.row_cu[:-1])[samples]
        shift = torch.repeat_interleave(cu[:-1] - self.cu_seqlens[:-1].long()[sequences], counts)
        return Batch(
            tokens=self.tokens[tokens_of],
            position_ids=self.position_ids[tokens_of],
            cu_seqlens=cu.int(),
            row_position=self.row_position[rows_of] + torch.repeat_interleave(shift, row_lengths),
            row_target=self.row_target[rows_of],
            row_kind=self.row_kind[rows_of],
            row_cu=offsets_of(row_lengths),
            streams={name: stream[rows_of] for name, stream in self.streams.items()},
            transition=self.transition[samples],
            sample_streams={name: stream[samples] for name, stream in self.sample_streams.items()},
            value_position=None if self.value_position is None else self.value_position[samples] + shift,
            sample_cu=offsets_of(counts),
            rows_of_kind=None if self.rows_of_kind is None else self.rows_of_kind[rows_of],
        )

    def counted_by_kind(self) -> torch.Tensor:
        """int64[R]: how many rows of its own kind a row's sample has."""
        if self.rows_of_kind is not None:
            return self.rows_of_kind
        lengths = self.row_cu[1:] - self.row_cu[:-1]
        sample = torch.repeat_interleave(
            torch.arange(len(self), device=lengths.device), lengths, output_size=self.num_rows
        )
        # A cell for each kind of each sample.
        cell = 2 * sample + self.row_kind.long()
        return torch.zeros(2 * len(self), dtype=torch.long, device=cell.device).index_add(
            0, cell, torch.ones_like(cell)
        )[cell]

    def with_rows(self, rows: torch.Tensor, first: int, last: int) -> Batch:
        """What a process that holds the tokens `first` to `last` of this batch needs for its losses: the rows
        (int64[r]) that stand there, by their place in that piece. Samples are those of the whole batch, so
        `row_cu` still counts all of theirs."""
        return Batch(
            tokens=self.tokens[first:last],
            position_ids=self.position_ids[first:last],
            cu_seqlens=self.cu_seqlens,
            row_position=self.row_position[rows] - first,
            row_target=self.row_target[rows],
            row_kind=self.row_kind[rows],
            row_cu=self.row_cu,
            streams={name: stream[rows] for name, stream in self.streams.items()},
            transition=self.transition,
            sample_streams=self.sample_streams,
            value_position=self.value_position,
            sample_cu=self.sample_cu,
            rows_of_kind=self.counted_by_kind()[rows],
        )


def offsets_of(lengths: torch.Tensor) -> torch.Tensor:
    """int64[n] lengths -> int64[n+1] offsets."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _ranges(offsets: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The indices offsets[c]:offsets[c+1] for each chosen c, one after the other (int64)."""
    lengths = (offsets[1:] - offsets[:-1])[chosen]
    starts = offsets[:-1][chosen]
    within = torch.arange(int(lengths.sum()), device=offsets.device) - torch.repeat_interleave(
        offsets_of(lengths)[:-1], lengths
    )
    return torch.repeat_interleave(starts, lengths) + within
