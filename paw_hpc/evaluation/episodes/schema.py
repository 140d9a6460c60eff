"""The columns of a kept step. Files load without this package: `pandas.read_parquet`,
`datasets.load_dataset("parquet", ...)`, duckdb."""

from __future__ import annotations

import pyarrow as pa

VERSION = 1
"""Of the columns below. It rises when one is renamed, removed or given another meaning; a new column alone
leaves it."""
VERSION_KEY = b"paw_hpc.episodes"
"""The version's name in a file's metadata (`paw_hpc.recipe` and `paw_hpc.seed` stand beside it)."""

_IDS, _LOGPS = pa.list_(pa.int32()), pa.list_(pa.float32())

STEP = pa.schema(
    [
        # Which step this is.
        pa.field("purpose", pa.string(), nullable=False),  # train, eval
        # train: the update's number, from 0; eval: updates that the policy has had
        pa.field("update", pa.int32(), nullable=False),
        pa.field("label", pa.string(), nullable=False),  # of the evaluation; empty in training
        # train: number in the update; eval: of the task in the panel
        pa.field("group", pa.int32(), nullable=False),
        pa.field("member", pa.int32(), nullable=False),  # of the group; eval: the repeat
        pa.field("step", pa.int32(), nullable=False),  # from 0
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("task_type", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),  # of the episode
        # The episode, on each of its rows.
        pa.field("steps", pa.int32(), nullable=False),
        pa.field("success", pa.bool_(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),  # the benchmark's own, in [0, 1]
        pa.field("episode_return", pa.float64(), nullable=False),  # undiscounted, without penalties
        # Text, special tokens included.
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),  # as it was given to the environment
        # the next one, as it was cut to wm.max_observation_tokens
        pa.field("observation", pa.string(), nullable=False),
        # Token ids; `*_ends`: characters (code points) of the text up to the end of each token.
        pa.field("prompt_ids", _IDS, nullable=False),
        pa.field("response_ids", _IDS, nullable=False),
        pa.field("response_ends", _IDS, nullable=False),
        pa.field("bridge_ids", _IDS, nullable=False),
        pa.field("observation_ids", _IDS, nullable=False),
        pa.field("observation_ends", _IDS, nullable=False),
        # What came of the action.
        pa.field("reward", pa.float64(), nullable=False),  # of the environment, without penalties
        pa.field("valid", pa.bool_(), nullable=False),
        # The policy on its action. Natural logs, after temperature.
        # of the weights that sampled the response's last token
        pa.field("weight_version", pa.int32(), nullable=False),
        pa.field("token_versions", _IDS),  # where they changed within the response
        pa.field("behaviour_logp", _LOGPS, nullable=False),  # as the engine said
        pa.field("old_logp", _LOGPS),  # as the trainer said before the update; null in evaluations
        pa.field("token_entropy", _LOGPS),  # nats, over the whole vocabulary; null where nobody asked
        pa.field("entropy", pa.float64()),  # of the action, as selection saw it (eq. 4)
        # What it was taught; null in evaluations.
        pa.field("advantage", pa.float64()),  # with a critic of tokens their mean
        # by wm.selection; in a run without the world-model loss: what it would have been
        pa.field("selected", pa.bool_()),
        pa.field("wm_lambda", pa.float64()),  # of the group (eq. 10), before wm.scale
        # of the observation's mean loss in the update's sum; 0: not trained on
        pa.field("wm_weight", pa.float64()),
        # The policy on the next observation; null where it was neither trained on nor diagnosed.
        pa.field("observation_logp", _LOGPS),
        # clipped MAE: probable enough already (p > wm.rho) to carry no loss
        pa.field("silenced", pa.list_(pa.bool_())),
        pa.field("predicted", pa.string()),  # the greedy prediction, where an evaluation generated it
        pa.field("predicted_ids", _IDS),
    ]
)
