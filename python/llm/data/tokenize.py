"""Turns text into shards: each part of a corpus is tokenized once, and found again by what it was made from."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from llm._rust import TextBlock
from llm.checkpoint import read_json
from llm.checkpoint.atomic import write_atomically
from llm.data.readers import ReadOptions
from llm.data.scan import Source, TextSlice, blocks_of, scan_corpus
from llm.data.shards import damage_of, write_shard
from llm.errors import DataError
from llm.progress import byte_progress
from llm.settings.run import DataConfig
from llm.tokenization import BaseTokenizer, BlockIds, TokenArray

MANIFEST = "corpus.json"
# Small files share a shard of at least this much text.
_SHARD_BYTES = 1 << 26
# Text that is encoded at once, at least: half of a block of a long file.
_BATCH_BYTES = 1 << 21


def tokenize_corpus(
    sources: Sequence[Source],
    tokenizer: BaseTokenizer,
    directory: Path,
    *,
    cache: Path | None = None,
    progress: bool | None = None,
) -> None:
    """Tokenizes what isn't yet, and writes to `directory` which shards belong to which source.

    Args:
        sources: The scanned corpus.
        tokenizer: Encodes the text.
        directory: The data of a run.
        cache: Where shards are kept for other runs; None keeps them in `directory`.
        progress: Whether to show a bar; None shows one on a terminal.

    Raises:
        DataError: A file changed since it was scanned.
        FileError: The disk is full.
    """
    folder = directory if cache is None else cache
    digest = hashlib.sha256(json.dumps([tokenizer.to_json(), tokenizer.eos_ids[:1]]).encode()).hexdigest()
    plans = {
        (source.name, part): _plans(getattr(source, part), digest)
        for source in sources
        for part in ("train", "validation")
    }
    names = {
        name: (slices, source)
        for source in sources
        for part in ("train", "validation")
        for name, slices in plans[source.name, part]
    }
    missing = {name: made for name, made in names.items() if damage_of(folder / f"{name}.bin") is not None}
    total = sum(part.num_bytes for slices, _ in missing.values() for part in slices)
    with byte_progress("Tokenizing", total, wanted=progress) as advance:
        for name, (slices, source) in missing.items():
            options = replace(source.options, at_line_ends=tokenizer.cuts_at_line_ends)
            texts = encode_blocks(blocks_of(slices, options), tokenizer, advance)
            size = sum(part.num_bytes for part in slices)
            write_shard(folder / f"{name}.bin", texts, tokenizer.vocab_size, size)
    listed = [
        {"name": source.name, "weight": source.weight}
        | {part: [name for name, _ in plans[source.name, part]] for part in ("train", "validation")}
        for source in sources
    ]
    directory.mkdir(parents=True, exist_ok=True)
    content = {"cache": None if cache is None else str(cache.absolute()), "sources": listed}
    write_atomically(directory / MANIFEST, json.dumps(content, indent=1) + "\n")


def mend_corpus(
    config: DataConfig, tokenizer: BaseTokenizer, directory: Path, *, progress: bool | None = None
) -> list[str]:
    """Checks the shards of a run by size and checksum and tokenizes damaged ones anew.

    Returns:
        A sentence about each damaged shard.

    Raises:
        DataError: A shard is damaged or missing, and the text it was made from isn't there any more.
    """
    if not (directory / MANIFEST).is_file():
        return []
    manifest = read_json(directory / MANIFEST)
    folder = directory if manifest["cache"] is None else Path(manifest["cache"])
    names = [name for source in manifest["sources"] for part in ("train", "validation") for name in source[part]]
    damages = {name: damage for name in names if (damage := damage_of(folder / f"{name}.bin")) is not None}
    if not damages:
        return []
    first = next(iter(damages.values()))
    try:
        sources = scan_corpus(config, folder, progress=progress)
        tokenize_corpus(sources, tokenizer, directory, cache=config.cache_directory, progress=progress)
    except DataError as error:
        raise DataError(f"{first}, and the text can't be tokenized anew: {error}") from None
    again = read_json(directory / MANIFEST)
    if {name for source in again["sources"] for part in ("train", "validation") for name in source[part]} != set(names):
        write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        raise DataError(
            f"{first}, and the text is not what it was when the run began\nhint: put the text back, or start a new run"
        )
    return [f"{damage}: tokenized anew" for damage in damages.values()]


def encode_blocks(
    blocks: Iterable[TextBlock], tokenizer: BaseTokenizer, advance: Callable[[int], None] | None = None
) -> Iterator[BlockIds]:
    """Yields ids with the end-of-text token after each document.

    Meanwhile the text of the next ids is encoded, on all cores and without Python's lock.

    Args:
        blocks: Documents in pieces.
        tokenizer: Encodes them.
        advance: Called with the bytes of text after each batch.
    """
    with ThreadPoolExecutor(1, "encoder") as encoder:
        before: tuple[int, Future[BlockIds]] | None = None
        for batch in _batches(blocks):
            encoded = encoder.submit(tokenizer.encode_blocks, batch)
            if before is not None:
                yield from _finished(*before, advance)
            before = sum(block.num_bytes for block in batch), encoded
        if before is not None:
            yield from _finished(*before, advance)


def _finished(size: int, encoded: "Future[BlockIds]", advance: Callable[[int], None] | None) -> Iterator[BlockIds]:
    yield encoded.result()
    if advance is not None:
        advance(size)


def _batches(blocks: Iterable[TextBlock]) -> Iterator[list[TextBlock]]:
    """Joins the blocks of small files, so that all cores have work."""
    batch: list[TextBlock] = []
    size = 0
    for block in blocks:
        batch.append(block)
        size += block.num_bytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _plans(parts: Sequence[TextSlice], tokenizer_digest: str) -> list[tuple[str, tuple[TextSlice, ...]]]:
    """Groups slices into shards, each with a name that says what it is made from."""
    groups: list[list[TextSlice]] = []
    for part in parts:
        if not groups or sum(one.num_bytes for one in groups[-1]) >= _SHARD_BYTES:
            groups.append([])
        groups[-1].append(part)
    return [(_name(group, tokenizer_digest), tuple(group)) for group in groups]


def _name(parts: Sequence[TextSlice], tokenizer_digest: str) -> str:
    made_from = [tokenizer_digest, *([part.file.digest, part.start, part.end] for part in parts)]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]


def encode_documents(documents: Iterable[str], tokenizer: BaseTokenizer) -> Iterator[TokenArray]:
    """Yields the ids of documents in memory, each followed by the end-of-text token if the tokenizer has one."""
    cutter = ReadOptions(separator=None, at_line_ends=tokenizer.cuts_at_line_ends).cutter()
    blocks = (cutter.feed_text(document, ends=True) for document in documents)
    yield from (encoded.ids for encoded in encode_blocks(blocks, tokenizer))
