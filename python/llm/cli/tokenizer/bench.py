"""`llm tokenizer bench`."""

from typing import Annotated

import typer

from llm.cli.tokenizer.options import AllowPickle, Pattern, SpecialTokens, Threads, TokenizerPath, open_tokenizer

EXAMPLE = "Example:  llm tokenizer bench tokenizers/mine corpus.txt"


def bench(
    path: TokenizerPath,
    file: Annotated[str | None, typer.Argument(help="Text file to encode; default: the built-in Shakespeare.")] = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Seconds per measurement.")] = 1.0,
    pattern: Pattern = None,
    special_token: SpecialTokens = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Measure MB/s, beside tiktoken if it is installed and produces the same ids."""
    from rich.console import Console

    from llm.tokenization.describe import input_text
    from llm.tokenization.speed import measure_speed, sample_text, speed_table

    tokenizer = open_tokenizer(path, pattern, special_token, allow_pickle)
    text = sample_text() if file is None else input_text(None, file, None)
    Console().print(speed_table(measure_speed(tokenizer, text, num_threads=threads, seconds=seconds)))


command = bench
