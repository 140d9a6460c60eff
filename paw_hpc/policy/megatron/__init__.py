"""The Megatron-core policy: tensor, pipeline, sequence and data parallel training of the same objective. `policy.py` imports the library."""
