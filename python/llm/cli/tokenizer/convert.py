"""`llm tokenizer convert`."""

from typing import Annotated

import typer

from llm.cli.tokenizer.options import (
    AllowPickle,
    Overwrite,
    Pattern,
    SpecialTokens,
    TokenizerPath,
    open_tokenizer,
)

EXAMPLE = "Example:  llm tokenizer convert tokenizers/mine mine.tiktoken"


def convert(
    path: TokenizerPath,
    out: Annotated[str, typer.Argument(help="Directory, or .json, .tiktoken or .gguf file, to write.")],
    to: Annotated[
        str | None,
        typer.Option(help="Format: directory, tokenizer.json, tiktoken, gpt2 or gguf; default: derived from OUT."),
    ] = None,
    overwrite: Overwrite = False,
    pattern: Pattern = None,
    special_token: SpecialTokens = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Convert a tokenizer to another format. A feature that the format cannot store is an error."""
    from llm.tokenization.convert import check_target, convert_tokenizer

    check_target(out, to, named="OUT", overwrite=overwrite)
    tokenizer = open_tokenizer(path, pattern, special_token, allow_pickle)
    written = convert_tokenizer(tokenizer, out, to)
    print(f"{out}: {written}, {tokenizer.vocab_size:,} entries")


command = convert
