"""`llm tokenizer decode`."""

import sys
from typing import Annotated

import typer

from llm.cli.tokenizer.options import AllowPickle, Pattern, SpecialTokens, TokenizerPath, open_tokenizer

EXAMPLE = (
    "Example:  llm tokenizer decode tokenizers/mine 84 111   ·   … encode … | llm tokenizer decode tokenizers/mine"
)


def decode(
    path: TokenizerPath,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Token ids; default: read them from standard input as they arrive."),
    ] = None,
    skip_special: Annotated[bool, typer.Option("--skip-special", help="Omit special tokens.")] = False,
    pattern: Pattern = None,
    special_token: SpecialTokens = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Decode token ids to text."""
    from llm.tokenization.describe import parse_ids

    tokenizer = open_tokenizer(path, pattern, special_token, allow_pickle)
    given = list(parse_ids(ids)) if ids else parse_ids(sys.stdin.buffer)
    for part in tokenizer.decode_stream(given, skip_special_tokens=skip_special):
        sys.stdout.write(part)
        sys.stdout.flush()
    if sys.stdout.isatty():
        print()


command = decode
