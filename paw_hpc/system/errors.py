"""The errors that a user is meant to read: one line that says what is wrong, where, and what to do."""


class UserError(Exception):
    """Something the user can put right. The command line prints its text without a traceback and exits with status 2."""


class RecipeError(UserError):
    """A recipe with an unknown key, a wrong type or an impossible combination."""


class DataError(UserError):
    """Missing, torn or mixed-release data."""


class CheckpointError(UserError):
    """A checkpoint that is torn, foreign, or made by another recipe."""


class StorageError(UserError):
    """The disk is full or cannot be written; what was whole before is still whole."""


NOT_FINITE = (
    "the policy's logits are not finite, so nothing can be sampled from it: its weights have diverged, or the model's folder is damaged;"
    " lower optimizer.lr (and start anew with --fresh, or from an earlier checkpoint)"
)


class TrainingError(UserError):
    """Training that must stop (for example three non-finite losses in a row); a checkpoint was written first."""
