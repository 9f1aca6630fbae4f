"""Arguments that several subcommands of `llm tokenizer` share."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llm.tokenization import BaseTokenizer

TokenizerPath = Annotated[
    str, typer.Argument(metavar="TOKENIZER", help="Directory, checkpoint, tokenizer.json, .tiktoken or .gguf file.")
]
Pattern = Annotated[str | None, typer.Option(help="Split pattern, for files that do not contain it.")]
SpecialTokens = Annotated[
    list[str] | None,
    typer.Option(
        "--special-token", metavar="TOKEN=ID", help="Special token, for files that do not contain them; repeatable."
    ),
]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Allow opening a pickled tokenizer.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a tokenizer that is there.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Number of threads; default: one per core.")]


def open_tokenizer(
    path: str, pattern: str | None, special_tokens: list[str] | None, allow_pickle: bool
) -> "BaseTokenizer":
    """Opens the tokenizer that these arguments describe."""
    from llm.tokenization import load_tokenizer
    from llm.tokenization.convert import parse_special_tokens

    tokens = None if special_tokens is None else parse_special_tokens(special_tokens)
    return load_tokenizer(path, pattern=pattern, special_tokens=tokens, allow_pickle=allow_pickle)
