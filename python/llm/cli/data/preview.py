"""`llm data preview`."""

from typing import Annotated

import typer

from llm.cli.data.options import (
    CONTEXT_LENGTH,
    ROW_KINDS,
    ChatTemplate,
    ContextLength,
    Field,
    More,
    Texts,
    TokenizerPath,
    cache_of,
    data_config,
    needed_tokenizer,
    prepared_rows,
    with_kind,
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
    chat_template: ChatTemplate = None,
) -> None:
    """Show a sample token by token: what is learnt in green, what is only read dimmed, a rule between documents."""
    from rich.console import Console

    from llm.data import TextDataModule
    from llm.data.preview import preview_lines
    from llm.tokenization import load_tokenizer

    given = data_config(texts, more, field=field, packing=packing or None, context_length=context_length)
    config = with_kind(given)
    path = needed_tokenizer(tokenizer)
    with cache_of(config) as cache:
        if config.kind in ROW_KINDS:
            data, loaded = prepared_rows(config, path, chat_template, cache)
        else:
            loaded = load_tokenizer(path)
            TextDataModule.prepare(cache, config, loaded)
            data = TextDataModule(cache, config.context_length or CONTEXT_LENGTH, config)
        dataset = data.train_dataset()
        lines = list(preview_lines(dataset, sample, loaded))
        console = Console()
        console.print(f"sample {sample}, of 0 to {len(dataset) - 1:,}", highlight=False)
        for line in lines:
            console.print(line)


command = preview
