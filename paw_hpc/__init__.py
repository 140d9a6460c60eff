"""paw_hpc: policy and world-model co-training (PaW) of language agents, from a laptop to a Slurm cluster."""

__version__ = "0.2.0"
