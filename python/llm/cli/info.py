"""`llm info`."""

from typing import Annotated

import typer

EXAMPLE = "Example:  llm info runs/demo"


def info(path: Annotated[str, typer.Argument(metavar="PATH", help="Checkpoint, run or .gguf file.")]) -> None:
    """Describe a checkpoint: size, memory, context, tokenizer, chat template."""
    from llm.info import describe

    facts = describe(path)
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")


command = info
