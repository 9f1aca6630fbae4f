"""Arguments that several verbs of `llm tokenizer` share."""

from typing import Annotated

import typer

TokenizerPath = Annotated[
    str, typer.Argument(metavar="TOKENIZER", help="A tokenizer's directory or file; a checkpoint is one too.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to use; default: one for each core.")]
