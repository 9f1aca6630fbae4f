"""`llm data preview`."""

from typing import Annotated

import typer

from llm.cli.data.options import (
    CONTEXT_LENGTH,
    ContextLength,
    Field,
    More,
    Texts,
    TokenizerPath,
    cache_of,
    data_config,
    needed_tokenizer,
)

EXAMPLE = "Example:  llm data preview corpus.jsonl --tokenizer runs/base/tokenizer --packing"


def preview(
    texts: Texts = None,
    more: More = None,
    tokenizer: TokenizerPath = None,
    field: Field = None,
    sample: Annotated[int, typer.Option(min=0, help="Number of the sample to show.")] = 0,
    context_length: ContextLength = None,
    packing: Annotated[bool, typer.Option("--packing", metavar="", help="Show a packed sample.")] = False,
) -> None:
    """Show a sample token by token: what is learnt in green, what is only read dimmed, a rule between documents."""
    from rich.console import Console

    from llm.data import TextDataModule
    from llm.data.preview import preview_lines
    from llm.tokenization import load_tokenizer

    config = data_config(texts, more, field=field, packing=packing or None, context_length=context_length)
    loaded = load_tokenizer(needed_tokenizer(tokenizer))
    with cache_of(config) as cache:
        TextDataModule.prepare(cache, config, loaded)
        dataset = TextDataModule(cache, config.context_length or CONTEXT_LENGTH, config).train_dataset()
        lines = list(preview_lines(dataset, sample, loaded))
        console = Console()
        console.print(f"sample {sample}, of 0 to {len(dataset) - 1:,}", highlight=False)
        for line in lines:
            console.print(line)


command = preview
