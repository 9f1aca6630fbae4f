"""Arguments that several verbs of `llm tokenizer` share."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llm.tokenization import BaseTokenizer

TokenizerPath = Annotated[
    str, typer.Argument(metavar="TOKENIZER", help="A directory, checkpoint, tokenizer.json, .tiktoken or .gguf file.")
]
Pattern = Annotated[str | None, typer.Option(help="How text is split, for a file that does not say it.")]
SpecialTokens = Annotated[
    list[str] | None, typer.Option("--special-token", metavar="TOKEN=ID", help="For the same; may be repeated.")
]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Open a pickled tokenizer.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to use; default: one for each core.")]


def open_tokenizer(
    path: str, pattern: str | None, special_tokens: list[str] | None, allow_pickle: bool
) -> "BaseTokenizer":
    """The tokenizer that the arguments above mean."""
    from llm.tokenization import load_tokenizer
    from llm.tokenization.convert import parse_special_tokens

    tokens = None if special_tokens is None else parse_special_tokens(special_tokens)
    return load_tokenizer(path, pattern=pattern, special_tokens=tokens, allow_pickle=allow_pickle)
