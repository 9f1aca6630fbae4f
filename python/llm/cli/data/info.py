"""`llm data info`."""

from typing import Annotated, Any

import typer

from llm.cli.data.options import Field, Texts, TokenizerPath, cache_of, data_config

EXAMPLE = "Example:  llm data info corpus/*.jsonl --tokenizer runs/base/tokenizer --context-length 512"


def info(
    texts: Texts,
    tokenizer: TokenizerPath = None,
    field: Field = None,
    context_length: Annotated[int, typer.Option(min=1, help="Tokens a sample.")] = 256,
    packing: Annotated[bool, typer.Option("--packing", metavar="", help="Count packed samples.")] = False,
) -> None:
    """Count documents and bytes of each source; with a tokenizer also tokens, lengths and samples."""
    from llm.data.scan import remarks, scan_corpus

    config = data_config(texts, field=field, packing=packing or None)
    with cache_of(config) as cache:
        sources = scan_corpus(config, cache)
        for source in sources:
            weight = "" if source.weight is None else f", weight {source.weight:g}"
            documents = _counted(sum(file.num_documents for file in source.files), "document")
            size = sum(file.num_bytes for file in source.files)
            print(f"{source.name}{weight}: {_counted(len(source.files), 'file')}, {documents}, {size:,} bytes")
        for remark in remarks(sources):
            print(f"note: {remark}")
        if tokenizer is not None:
            _print_tokens(config, sources, tokenizer, cache, context_length)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _print_tokens(config: Any, sources: Any, path: str, cache: Any, context_length: int) -> None:
    from llm.data import TextDataModule
    from llm.data.lengths import histogram
    from llm.data.tokenize import tokenize_corpus
    from llm.tokenization import load_tokenizer

    tokenize_corpus(sources, load_tokenizer(path), cache)
    data = TextDataModule(cache, context_length, config)
    for facts in data.facts():
        tokens = facts["tokens"] + facts["validation_tokens"]
        size = facts["bytes"] + facts["validation_bytes"]
        print(f"\n{facts['name']}: {tokens:,} tokens, {size / max(1, tokens):.2f} bytes a token")
        if "samples" in facts:
            filled = f", {facts['filled']:.0%} filled" if "filled" in facts else ""
            print(f"  {facts['samples']:,} samples of {context_length} tokens{filled}")
        if facts.get("dropped_tokens"):
            print(f"  tokens at the end that fill no sample, which are left out: {facts['dropped_tokens']:,}")
    for notice in data.notices():
        print(f"note: {notice}")
    print("\ntokens a document   documents")
    for low, high, count, bar in histogram(data.document_lengths()):
        print(f"{low:>8,} – {high:>8,}  {count:>9,}  {bar}")


command = info
