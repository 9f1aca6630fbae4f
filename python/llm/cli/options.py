"""Options that several verbs share."""

from typing import Annotated

import typer

Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="New tokens at most.")]
Temperature = Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(min=0, help="Keep the k likeliest tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option(help="Keep the smallest set of this mass.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Makes the answer repeatable.")]
