"""`llm tokenizer`."""

from typing import Annotated

import typer

from llm.config import PatternName

app = typer.Typer(help="Train and use tokenizers.", no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """Train and use tokenizers."""


@app.command(epilog="Example:  llm tokenizer train corpus.txt --vocab-size 8192 --out tokenizers/mine")
def train(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="UTF-8 text: files, directories or globs.")],
    vocab_size: Annotated[int, typer.Option(help="Entries, the 256 bytes and special tokens included.")],
    out: Annotated[str, typer.Option(help="Directory to save to.")],
    pattern: Annotated[PatternName, typer.Option(help="How text is split before merging.")] = "gpt4",
) -> None:
    """Train a byte-level BPE tokenizer."""
    from llm.tokenization import BPETokenizer

    tokenizer = BPETokenizer.train(files, vocab_size=vocab_size, pattern=pattern)
    tokenizer.save(out)
    print(f"{out}: {tokenizer.vocab_size} entries")
