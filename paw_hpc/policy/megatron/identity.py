"""What a checkpoint's weights are of: whether it may be read into this run's model."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from paw_hpc.policy.checkpoint_folder import (
    OTHER_WEIGHTS,
)
from paw_hpc.policy.convert.architecture import Architecture
from paw_hpc.system.errors import CheckpointError


@dataclass(frozen=True)
class Identity:
    """What a checkpoint must share with the run that reads it."""

    architecture: Architecture
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    initial_fingerprint: str | None = None
    """Of the weights that the run began with."""
    has_reference: bool = False
    """A reference policy is made of those weights, so they must be the same ones."""

    @functools.cached_property
    def described(self) -> dict[str, Any]:
        """JSON values."""
        words = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        return {
            "architecture": dataclasses.asdict(self.architecture),
            "tokenizer": {"tokens": len(self.tokenizer), "sha256": hashlib.sha256(words).hexdigest()},
            "initial_fingerprint": self.initial_fingerprint,
        }

    def check(self, path: Path, found: Mapping[str, Any], *, moved: bool = False) -> None:
        """Raises CheckpointError where a checkpoint's description differs in what would change a resumed run.

        Args:
            moved: the initial model was found in another place than the run began with.
        """
        own = self.described
        for field, value in own["architecture"].items():
            if (saved := found["architecture"].get(field)) != value:
                raise CheckpointError(
                    f"{path}: of another model: its {field} is {saved}, the run's is {value}"
                )
        if found["tokenizer"] != own["tokenizer"]:
            sizes = f"{found['tokenizer']['tokens']} tokens, the run's has {own['tokenizer']['tokens']}"
            raise CheckpointError(
                f"{path}: its vocabulary is not the tokenizer's (it was written with {sizes}); give its "
                "tokenizer as model.tokenizer"
            )
        if (self.has_reference or moved) and found["initial_fingerprint"] != self.initial_fingerprint:
            raise CheckpointError(OTHER_WEIGHTS)
