"""The Megatron-core policy: tensor, pipeline, sequence and data parallel training of the same objective.
`policy.py` imports the library."""

import warnings

# Megatron-core warns of every optional library that is missing, and calls functions that newer releases of
# torch have renamed.
warnings.filterwarnings("ignore", module=r"megatron\.")
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
