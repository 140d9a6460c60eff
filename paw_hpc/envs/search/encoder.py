"""Texts to unit vectors with any encoder folder: E5, MiniLM, BGE and their kin, through `transformers`."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

from paw_hpc.system.errors import DataError

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """How an encoder is used; kept with every index that it made."""

    path: str
    """Folder or hub name."""
    pooling: Literal["mean", "cls"] = "mean"
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = 256

    @classmethod
    def of(cls, path: str, pooling: str | None = None, max_tokens: int = 256) -> EncoderSettings:
        """What an encoder's name tells of its use: E5 wants prefixes, BGE pools its first token; everything
        else is averaged without prefixes."""
        name = path.rstrip("/").rpartition("/")[2].lower()
        prefixes = ("query: ", "passage: ") if "e5" in name.replace("_", "-").split("-") else ("", "")
        chosen = pooling or ("cls" if "bge" in name else "mean")
        if chosen not in ("mean", "cls"):
            raise DataError(f"--pooling {chosen}: one of mean, cls")
        return cls(path, chosen, *prefixes, max_tokens)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Encoder:
    """An encoder on the GPU where there is one (half precision), else on the CPU.

    Raises:
        DataError: no encoder at that path.
    """

    def __init__(self, settings: EncoderSettings):
        self.settings = settings
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(settings.path)
            self._model = AutoModel.from_pretrained(
                settings.path, dtype=torch.float16 if self._device == "cuda" else torch.float32
            )
        except (
            OSError,
            ValueError,
            pickle.UnpicklingError,
        ) as error:  # the last: weights in a .bin file that are more than tensors
            raise DataError(
                f"encoder {settings.path}: cannot be loaded ({' '.join(str(error).split())[:200]})"
            ) from None
        self._model.eval().to(self._device)

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self._model.config.hidden_size)

    def queries(self, texts: Sequence[str]) -> Vectors:
        """float32[n, width], unit length."""
        return self._encode([self.settings.query_prefix + text for text in texts])

    def passages(self, texts: Sequence[str]) -> Vectors:
        """float32[n, width], unit length."""
        return self._encode([self.settings.passage_prefix + text for text in texts])

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str], batch: int = 64) -> Vectors:
        vectors = np.empty((len(texts), self.width), dtype=np.float32)
        # texts of one length stand together, so that little is padded
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for first in range(0, len(texts), batch):
            part = by_length[first : first + batch]
            inputs = self._tokenizer(
                [texts[i] for i in part],
                padding=True,
                truncation=True,
                max_length=self.settings.max_tokens,
                return_tensors="pt",
            ).to(self._device)
            hidden = self._model(**inputs).last_hidden_state.float()  # [n, T, width]
            mask = inputs["attention_mask"][..., None]
            pooled = hidden[:, 0] if self.settings.pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
            vectors[part] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return vectors
