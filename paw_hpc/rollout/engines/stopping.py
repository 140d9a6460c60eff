"""Where a response ends: at strings that the recipe names, and at ids that end a turn."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from paw_hpc.system.errors import RecipeError


class StopStrings:
    """Tells whether the newest token completed one of some strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        if any(not string for string in strings):
            raise RecipeError("rollout.stop: an empty string would end every response at once")
        self.tokenizer, self.strings = tokenizer, tuple(strings)
        # A token is at least one byte, so this many newest tokens hold the whole string.
        self.window = max((len(s.encode()) for s in strings), default=0)

        self.finals = {s[-1] for s in strings}
        self._may_end: dict[int, bool] = {}

    def ends(self, ids: list[int]) -> bool:
        """Whether the text of `ids` holds one of the strings, given that without the last id it did not."""
        if not self.strings or not self._can_end(ids[-1]):
            return False
        text = self.tokenizer.decode(ids[-self.window - 1 :])
        return any(string in text for string in self.strings)

    def _can_end(self, token: int) -> bool:
        """False only if the token surely lacks the last character of every string: decoding each token of
        each sample would be slow."""
        if token not in self._may_end:
            raw = str(self.tokenizer.convert_ids_to_tokens(token) or "")
            # Byte-level and sentencepiece vocabularies spell visible ASCII as itself, apart from byte tokens
            # such as <0x3E>.
            visible = all("!" <= final <= "~" for final in self.finals)
            self._may_end[token] = (
                not visible or raw.startswith("<0x") or any(final in raw for final in self.finals)
            )
        return self._may_end[token]


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a response: the tokenizer's and the generation config's (one or several)."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*several, tokenizer.eos_token_id] if i is not None)
