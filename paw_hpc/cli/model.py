"""`paw data model WHAT`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_model(app: typer.Typer) -> None:
    """Add the command `model` to a group of commands."""
    app.command("model")(_model)


def _model(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE.gguf",
            help="smollm2 (SmolLM2-135M-Instruct, 93 MB), or a GGUF file to convert.",
        ),
    ],
) -> None:
    """Bring a pretrained model into the cache, as a Hugging Face folder; prints what model.path is to be."""
    from transformers.utils import logging

    from paw_hpc.policy import fetched

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what it would warn of (weights that a file lacks) is refused
    print(fetched.keep(Path(what).expanduser()) if what.endswith(".gguf") else fetched.fetch(what))
