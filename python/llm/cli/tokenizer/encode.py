"""`llm tokenizer encode`."""

import sys
from typing import Annotated

import typer

from llm.cli.tokenizer.options import AllowPickle, Pattern, SpecialTokens, TokenizerPath, open_tokenizer

EXAMPLE = "Example:  llm tokenizer encode tokenizers/mine 'To be, or not to be' --pieces"


def encode(
    path: TokenizerPath,
    text: Annotated[str | None, typer.Argument(help="Text to encode; default: standard input.")] = None,
    file: Annotated[str | None, typer.Option(help="Encode the text of this file instead.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the ids as a JSON list.")] = False,
    pieces: Annotated[
        bool, typer.Option("--pieces", help="Print the text of each token, coloured on a terminal.")
    ] = False,
    allow_special: Annotated[bool, typer.Option("--allow-special", help="Encode special tokens as their ids.")] = False,
    add_bos: Annotated[bool, typer.Option("--add-bos", help="Add the beginning-of-text token.")] = False,
    add_eos: Annotated[bool, typer.Option("--add-eos", help="Add the end-of-text token.")] = False,
    pattern: Pattern = None,
    special_token: SpecialTokens = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Encode text to token ids, printed on one line."""
    from llm.tokenization.describe import input_text, print_pieces

    tokenizer = open_tokenizer(path, pattern, special_token, allow_pickle)
    content = input_text(text, file, sys.stdin.buffer)
    ids = tokenizer.encode(content, allow_special=allow_special, add_bos=add_bos, add_eos=add_eos)
    if pieces:
        print_pieces(tokenizer, ids)
        return
    print(ids if json else " ".join(map(str, ids)))


command = encode
