"""`llm data preview`."""

from typing import Annotated

import typer

from llm.cli.data.options import Field, Texts, cache_of, data_config

EXAMPLE = "Example:  llm data preview corpus.jsonl --tokenizer runs/base/tokenizer --packing"


def preview(
    texts: Texts,
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's directory.")],
    field: Field = None,
    sample: Annotated[int, typer.Option(min=0, help="Number of the sample to show.")] = 0,
    context_length: Annotated[int, typer.Option(min=1, help="Tokens a sample.")] = 256,
    packing: Annotated[bool, typer.Option("--packing", metavar="", help="Show a packed sample.")] = False,
) -> None:
    """Show a sample token by token: what is learnt in green, what is only read dimmed, a rule between documents."""
    from rich.console import Console

    from llm.data import TextDataModule
    from llm.data.preview import preview_lines
    from llm.tokenization import load_tokenizer

    config = data_config(texts, field=field, packing=packing or None)
    loaded = load_tokenizer(tokenizer)
    with cache_of(config) as cache:
        TextDataModule.prepare(cache, config, loaded)
        dataset = TextDataModule(cache, context_length, config).train_dataset()
        console = Console()
        console.print(f"sample {sample} of {len(dataset):,}", highlight=False)
        for line in preview_lines(dataset, sample, loaded):
            console.print(line)


command = preview
