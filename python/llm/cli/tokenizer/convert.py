"""`llm tokenizer convert`."""

from typing import Annotated

import typer

from llm.cli.tokenizer.options import AllowPickle, Pattern, SpecialTokens, TokenizerPath, open_tokenizer

EXAMPLE = "Example:  llm tokenizer convert tokenizers/mine mine.tiktoken"


def convert(
    path: TokenizerPath,
    out: Annotated[str, typer.Argument(help="A directory, or a .json, .tiktoken or .gguf file.")],
    to: Annotated[
        str | None, typer.Option(help="directory, tokenizer.json, tiktoken, gpt2 or gguf; default: by OUT's name.")
    ] = None,
    pattern: Pattern = None,
    special_token: SpecialTokens = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Write a tokenizer in another format; what that can't hold is an error that names it."""
    from llm.tokenization.convert import convert_tokenizer

    tokenizer = open_tokenizer(path, pattern, special_token, allow_pickle)
    written = convert_tokenizer(tokenizer, out, to)
    print(f"{out}: {written}, {tokenizer.vocab_size:,} entries")


command = convert
