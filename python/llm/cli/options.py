"""Options that several verbs share."""

import re
from typing import Annotated

import typer

Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="New tokens at most.")]
Temperature = Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(min=0, help="Keep the k likeliest tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option(help="Keep the smallest set of this mass.")]
MinP = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Drop below this share of the best token.")]
TypicalP = Annotated[float | None, typer.Option(help="Keep the set of this mass nearest to the entropy.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Over 1: repeat less.")]
PresencePenalty = Annotated[float | None, typer.Option(min=-2.0, max=2.0, help="Once per token seen.")]
FrequencyPenalty = Annotated[float | None, typer.Option(min=-2.0, max=2.0, help="Per time a token was seen.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Makes the answer repeatable.")]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def size_in_bytes(text: str) -> int:
    """`2GiB`, `500 MB` or plain bytes as a number of bytes."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"must be a size such as 2GiB, 500MB or a number of bytes, got {text!r}")
    number, letter, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("KMGT".find(letter.upper()) + 1 if letter else 0))
