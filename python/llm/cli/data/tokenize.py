"""`llm data tokenize`."""

from typing import Annotated

import typer

from llm.cli.data.options import Field, Texts, data_config

EXAMPLE = "Example:  llm data tokenize corpus/ --tokenizer runs/base/tokenizer --cache ~/shards"


def tokenize(
    texts: Texts,
    tokenizer: Annotated[str, typer.Option(help="A tokenizer's directory.")],
    cache: Annotated[str, typer.Option(help="Directory of shards; `data.cache` of the runs that shall use them.")],
    field: Field = None,
) -> None:
    """Tokenize text ahead of runs, which find the shards by `data.cache`."""
    from llm.data import TextDataModule
    from llm.tokenization import load_tokenizer

    config = data_config(texts, field=field, cache=cache)
    folder = config.cache_directory
    assert folder is not None  # noqa: S101 -- the option is required
    TextDataModule.prepare(folder, config, load_tokenizer(tokenizer))
    for facts in TextDataModule(folder, 1, config).facts():
        print(f"{facts['name']}: {facts['tokens'] + facts['validation_tokens']:,} tokens")
    print(f"next:  llm train --data … --tokenizer {tokenizer} --out runs/base data.cache={cache}")


command = tokenize
