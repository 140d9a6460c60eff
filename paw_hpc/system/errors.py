"""The errors that a user is meant to read: one line that says what is wrong, where, and what to do."""

LONGEST_LINE = 2000
"""Characters of an error's line: what it quotes may be a whole file."""


class UserError(Exception):
    """Something the user can put right. The command line prints its text without a traceback and exits with
    status 2.

    Its text is one line that a terminal can show, whatever it quotes: line breaks are blanks, what cannot be
    printed is written by its number, and the middle of what is very long is left out.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST_LINE:
            text = f"{text[: LONGEST_LINE // 2]} ... {text[-LONGEST_LINE // 4 :]}"
        if text.isprintable():
            return text
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


class RecipeError(UserError):
    """A recipe with an unknown key, a wrong type or an impossible combination."""


class DataError(UserError):
    """Missing, torn or mixed-release data."""


class CheckpointError(UserError):
    """A checkpoint that is torn, foreign, or made by another recipe."""


class StorageError(UserError):
    """The disk is full or cannot be written; what was whole before is still whole."""


NOT_FINITE = (
    "the policy's logits are not finite, so nothing can be sampled from it: its weights have diverged, or "
    "the model's folder is damaged;"
    " lower optimizer.lr (and start anew with --fresh, or from an earlier checkpoint)"
)


class TrainingError(UserError):
    """Training that must stop (for example three non-finite losses in a row); a checkpoint was written
    first."""
