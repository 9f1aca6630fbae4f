"""`llm tokenizer train`."""

from typing import Annotated

import typer

from llm.cli.tokenizer.options import Overwrite, Threads
from llm.settings.paths import quoted

EXAMPLE = "Example:  llm tokenizer train corpus.txt --vocab-size 8192 --out tokenizers/mine"


def train(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="UTF-8 text: files, directories or glob patterns.")
    ],
    vocab_size: Annotated[int, typer.Option(help="Number of entries, including the 256 bytes and the special tokens.")],
    out: Annotated[str, typer.Option(help="Directory to write.")],
    pattern: Annotated[
        str, typer.Option(help="Split pattern: gpt2, gpt4, o200k, qwen2 … or a regular expression.")
    ] = "gpt4",
    special_token: Annotated[list[str] | None, typer.Option(help="Special token to add; repeatable.")] = None,
    min_frequency: Annotated[int, typer.Option(min=1, help="Minimum count of a pair to be merged.")] = 1,
    max_token_length: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of bytes of a merged token.")
    ] = None,
    overwrite: Overwrite = False,
    threads: Threads = None,
) -> None:
    """Train a byte-level BPE tokenizer."""
    from llm.tokenization import BPETokenizer
    from llm.tokenization.bpe import DEFAULT_SPECIAL_TOKENS
    from llm.tokenization.convert import DIRECTORY, check_target
    from llm.tokenization.describe import training_summary

    check_target(out, DIRECTORY, named="--out", overwrite=overwrite)
    special_tokens = DEFAULT_SPECIAL_TOKENS if special_token is None else special_token
    tokenizer = BPETokenizer.train(
        files,
        vocab_size=vocab_size,
        pattern=pattern,
        special_tokens=special_tokens,
        min_frequency=min_frequency,
        max_token_length=max_token_length,
        num_threads=threads,
    )
    tokenizer.save(out)
    print(f"{out}: {training_summary(tokenizer, files)}")
    path = quoted(out)
    print(f"next:  llm tokenizer encode {path} 'Once upon' --pieces   ·   llm train --tokenizer {path} …")


command = train
