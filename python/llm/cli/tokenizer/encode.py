"""`llm tokenizer encode`."""

import sys
from typing import Annotated

import typer

from llm.cli.tokenizer.options import AllowPickle, Pattern, SpecialTokens, TokenizerPath, open_tokenizer

EXAMPLE = "Example:  llm tokenizer encode tokenizers/mine 'To be, or not to be' --pieces"


def encode(
    path: TokenizerPath,
    text: Annotated[str | None, typer.Argument(help="What to encode; default: standard input.")] = None,
    file: Annotated[str | None, typer.Option(help="Encode a file's text instead.")] = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON list.")] = False,
    pieces: Annotated[bool, typer.Option("--pieces", help="The text of each token, in colours on a terminal.")] = False,
    allow_special: Annotated[bool, typer.Option("--allow-special", help="Special tokens become their id.")] = False,
    add_bos: Annotated[bool, typer.Option("--add-bos", help="Begin with BOS.")] = False,
    add_eos: Annotated[bool, typer.Option("--add-eos", help="End with EOS.")] = False,
    pattern: Pattern = None,
    special_token: SpecialTokens = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Turn text into token ids, one line of numbers."""
    from llm.tokenization.describe import input_text, print_pieces

    tokenizer = open_tokenizer(path, pattern, special_token, allow_pickle)
    content = input_text(text, file, sys.stdin.buffer)
    ids = tokenizer.encode(content, allow_special=allow_special, add_bos=add_bos, add_eos=add_eos)
    if pieces:
        print_pieces(tokenizer, ids)
        return
    print(ids if json else " ".join(map(str, ids)))


command = encode
