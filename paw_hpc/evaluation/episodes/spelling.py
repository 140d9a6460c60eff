"""Token ids as text, and where each token ends in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what reads kept episodes does without
    from transformers import PreTrainedTokenizerBase

    from paw_hpc.experience import Ids


class Speller:
    """Spells ids with all their special tokens: what is kept is what stood there.

    Args:
        tokenizer: a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def text(self, ids: Ids) -> str:
        """As the tokenizer decodes them, without tidying up spaces."""
        return str(
            self._tokenizer.decode(
                ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def ends(self, ids: Ids) -> tuple[str, list[int]]:
        """(text, int[len(ids)]): the same, and for each token how many code points of the text are spelled
        when it was read.

        A token that ends within a character (bytes of an emoji) ends where the one before it does; the one
        that completes it has it. Bytes that never become a character are in the text of the last token.
        """
        from tokenizers.decoders import DecodeStream

        stream, backend, ends, spelled = (
            DecodeStream(skip_special_tokens=False),
            self._tokenizer.backend_tokenizer,
            [],
            0,
        )  # type: ignore[attr-defined]
        for token in ids.tolist():
            spelled += len(stream.step(backend, token) or "")
            ends.append(spelled)
        text = self.text(ids)
        return text, [*(min(end, len(text)) for end in ends[:-1]), len(text)] if ends else []


def pieces(text: str, ends: Sequence[int]) -> list[str]:
    """The text of each token; joined they are the text."""
    return [text[start:end] for start, end in pairwise([0, *ends])]
