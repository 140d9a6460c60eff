"""The LM head of the scored rows: log-prob, entropy and loss in one pass (docs/kernels.md)."""

from paw_hpc.kernels.head import RowLoss, RowLossFunction, linear_logprob_entropy, linear_row_loss
from paw_hpc.kernels.logits import logits_logprob_entropy

__all__ = [
    "RowLoss",
    "RowLossFunction",
    "linear_logprob_entropy",
    "linear_row_loss",
    "logits_logprob_entropy",
]
