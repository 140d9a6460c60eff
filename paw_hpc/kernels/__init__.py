"""The LM head of the scored rows: log-prob, entropy and loss in one pass (docs/kernels.md)."""

from paw_hpc.kernels.head import RowLoss, RowLossFunction, linear_logprob_entropy, linear_row_loss

__all__ = ["RowLoss", "RowLossFunction", "linear_logprob_entropy", "linear_row_loss"]
