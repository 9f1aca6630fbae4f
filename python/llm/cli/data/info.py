"""`llm data info`."""

from typing import Annotated, Any

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
    prepared_rows,
    with_kind,
)

EXAMPLE = "Example:  llm data info corpus/*.jsonl --tokenizer runs/base/tokenizer --context-length 512"


def info(
    texts: Texts = None,
    more: More = None,
    tokenizer: TokenizerPath = None,
    field: Field = None,
    context_length: ContextLength = None,
    packing: Annotated[bool, typer.Option("--packing", metavar="", help="Count packed samples.")] = False,
    chat_template: ChatTemplate = None,
) -> None:
    """Count documents and bytes, or rows of conversations; with a tokenizer also tokens, lengths and samples."""
    from llm.data.scan import remarks, scan_corpus

    given = data_config(texts, more, field=field, packing=packing or None, context_length=context_length)
    config = with_kind(given)
    with cache_of(config) as cache:
        if config.kind in ROW_KINDS:
            _print_rows(config, tokenizer, chat_template, cache)
            return
        sources = scan_corpus(config, cache)
        for source in sources:
            weight = "" if source.weight is None else f", weight {source.weight:g}"
            documents = _counted(sum(file.num_documents for file in source.files), "document")
            size = sum(file.num_bytes for file in source.files)
            print(f"{source.name}{weight}: {_counted(len(source.files), 'file')}, {documents}, {size:,} bytes")
        for remark in remarks(sources):
            print(f"note: {remark}")
        if tokenizer is not None:
            _print_tokens(config, sources, tokenizer, cache)
        else:
            print("next:  add --tokenizer DIR (or a run) to count tokens and samples too")


def _print_rows(config: Any, path: str | None, chat_template: str | None, cache: Any) -> None:
    """Prints how many rows there are, and with a tokenizer what of them is learnt."""
    from llm.data.lengths import histogram
    from llm.data.rows.store import count_rows

    for name, num_files, formats in count_rows(config):
        counts = ", ".join(f"{number:,} of format `{one}`" for one, number in formats.items())
        print(f"{name}: {_counted(num_files, 'file')}, {_counted(sum(formats.values()), 'row')}: {counts}")
    if path is None:
        print("next:  add --tokenizer DIR (or a run) to count tokens, and those that are learnt")
        return
    data, _ = prepared_rows(config, path, chat_template, cache)
    word = "answers" if config.kind == "preference" else "rows"
    for facts in data.facts():
        print(f"\n{facts['name']}: {facts['tokens'] + facts['validation_tokens']:,} tokens")
        print(f"  to learn from: {facts['rows']:,} {word} of {facts['tokens']:,} tokens, {facts['learnt']:,} learnt")
        print(f"  held out: {facts['validation_rows']:,} {word} of {facts['validation_tokens']:,} tokens")
        if "samples" in facts:
            print(
                f"  {_counted(facts['samples'], 'sample')} of {data.context_length} tokens, "
                f"{facts['filled']:.0%} filled"
            )
    _print_classes("tokens a row, rows", list(histogram(data.row_lengths())))


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _print_tokens(config: Any, sources: Any, path: str, cache: Any) -> None:
    from llm.data import TextDataModule
    from llm.data.lengths import histogram
    from llm.data.tokenize import tokenize_corpus
    from llm.tokenization import load_tokenizer

    context_length = config.context_length or CONTEXT_LENGTH
    tokenize_corpus(sources, load_tokenizer(path), cache)
    data = TextDataModule(cache, context_length, config)
    for facts in data.facts():
        tokens = facts["tokens"] + facts["validation_tokens"]
        size = facts["bytes"] + facts["validation_bytes"]
        print(f"\n{facts['name']}: {tokens:,} tokens, {size / max(1, tokens):.2f} bytes a token")
        print(f"  to learn from: {facts['tokens']:,} tokens; held out: {facts['validation_tokens']:,}")
        if "samples" in facts:
            filled = f", {facts['filled']:.0%} filled" if "filled" in facts else ""
            print(f"  {_counted(facts['samples'], 'sample')} of {context_length} tokens{filled}")
        if facts.get("dropped_tokens"):
            print(f"  tokens at the end that fill no sample, which are left out: {facts['dropped_tokens']:,}")
    for notice in data.notices():
        print(f"note: {notice}")
    _print_lengths(list(histogram(data.document_lengths())), sum(file.num_documents for file in _files(sources)))


def _files(sources: Any) -> list[Any]:
    return [file for source in sources for file in source.files]


def _print_lengths(classes: list[tuple[int, int, int, str]], num_documents: int) -> None:
    """Prints how many documents are how long."""
    is_cut = sum(count for _, _, count, _ in classes) > num_documents
    note = " (one counts twice, cut where the held-out text begins)" if is_cut else ""
    _print_classes(f"tokens a document, documents{note}", classes)


def _print_classes(title: str, classes: list[tuple[int, int, int, str]]) -> None:
    rows = [(f"{low:,} – {high:,}", f"{count:,}", bar) for low, high, count, bar in classes]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    print(f"\n{title}")
    for length, number, bar in rows:
        print(f"  {length.rjust(widths[0])}  {number.rjust(widths[1])}  {bar}")


command = info
