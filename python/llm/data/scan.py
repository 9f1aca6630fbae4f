"""What a corpus holds, found in one pass over its files that keeps no text."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm._rust import TextBlock
from llm.checkpoint import read_json
from llm.checkpoint.atomic import write_atomically
from llm.data.readers import (
    Piece,
    ReadNotes,
    ReadOptions,
    content_digest,
    corpus_files,
    kind_of,
    num_bytes,
    pieces_of,
    read_blocks,
    sliced,
)
from llm.errors import CheckpointError, DataError
from llm.progress import byte_progress
from llm.settings.run import DataConfig
from llm.settings.sources import SourceConfig

# Part of every name in the cache: a reader that finds other documents in the same bytes must raise it.
_VERSION = 1


@dataclass(frozen=True)
class ScannedFile:
    """A file of a corpus.

    Attributes:
        path: Where the file is.
        digest: SHA-256 of its bytes and of how they are read, which names everything that is made from them.
        num_documents: Documents with text.
        num_bytes: Bytes of their text in UTF-8.
        num_blank: Documents without a visible character, which are left out.
        has_bom: Whether the file begins with a byte order mark.
        has_crlf: Whether lines end in CRLF.
    """

    path: Path
    digest: str
    num_documents: int
    num_bytes: int
    num_blank: int
    has_bom: bool
    has_crlf: bool


@dataclass(frozen=True)
class TextSlice:
    """The text of a file between two of its bytes, counted over its documents only."""

    file: ScannedFile
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Length in UTF-8."""
        return self.end - self.start


@dataclass(frozen=True)
class Source:
    """One source of a mixture: its files, split into a training and a validation part."""

    name: str
    weight: float | None
    options: ReadOptions
    train: tuple[TextSlice, ...]
    validation: tuple[TextSlice, ...]

    @property
    def files(self) -> tuple[ScannedFile, ...]:
        """Every file once."""
        return tuple({part.file.path: part.file for part in (*self.train, *self.validation)}.values())


def scan_corpus(config: DataConfig, cache: Path, *, progress: bool | None = None) -> tuple[Source, ...]:
    """Counts the documents of every source, and splits off what is held out.

    Args:
        config: Names the sources.
        cache: Directory that keeps the counts, so that a file with the same bytes is not read again.
        progress: Whether to show a bar; None shows one on a terminal.

    Raises:
        DataError: There is no file or no text, or a file can't be read.
        MissingExtraError: A file needs a package that is not installed.
    """
    named = config.all_sources
    if not any(source.paths for source in named):
        raise DataError("no training text was named\nhint: pass `--data PATH` (a file, a directory or a pattern)")
    listed = {source.name: corpus_files(source.paths) for source in named}
    held_out = corpus_files(config.validation_paths) if config.validation_paths else []
    total = sum(file.stat().st_size for files in (*listed.values(), held_out) for file in files)
    with byte_progress("Reading text", total, wanted=progress) as advance:
        counts = _Counts(cache)
        sources = [_scan_source(source, listed[source.name], config, counts, advance) for source in named]
        if held_out:
            options = ReadOptions(config.field, config.separator)
            fresh = [_scan_file(file, options, counts, advance) for file in held_out]
            _check_has_text(fresh, config.validation_paths)
            # Text of its own is read as one more source, of which nothing is trained on.
            sources.append(Source("validation", 0.0, options, (), _whole(fresh)))
    return tuple(sources)


def blocks_of(parts: Sequence[TextSlice], options: ReadOptions) -> Iterator[TextBlock]:
    """Yields the text of slices in blocks."""
    for part in parts:
        blocks = read_blocks(part.file.path, options)
        whole = part.start == 0 and part.end == part.file.num_bytes
        yield from blocks if whole else sliced(blocks, part.start, part.end)


def texts_of(parts: Sequence[TextSlice], options: ReadOptions, *, max_bytes: int | None = None) -> Iterator[Piece]:
    """Yields the pieces of slices, or an even selection of about `max_bytes` of them."""
    total = sum(part.num_bytes for part in parts)
    share = 1.0 if max_bytes is None or max_bytes >= total else max_bytes / total
    seen = taken = 0
    for piece in pieces_of(blocks_of(parts, options)):
        if share == 1.0:
            yield piece
            continue
        size = num_bytes(piece.text)
        seen += size
        if taken < seen * share:
            taken += size
            yield piece


def remarks(sources: Sequence[Source]) -> list[str]:
    """Returns what a user should know about the text: marks and line ends of Windows, and blank documents."""
    files = [file for source in sources for file in source.files]
    found = []
    if crlf := [file for file in files if file.has_crlf]:
        found.append(
            f"{_named(crlf)} Windows line ends (CRLF), which are learnt as they are; `sed -i 's/\\r$//' FILE` makes "
            "them plain"
        )
    if boms := [file for file in files if file.has_bom]:
        found.append(f"{_named(boms)} a byte order mark, which is left out")
    if blank := sum(file.num_blank for file in files):
        found.append(f"documents without text, which are left out: {blank:,}")
    return found


def _named(files: Sequence[ScannedFile]) -> str:
    return f"{files[0].path} has" if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more files have"


def _scan_source(
    source: SourceConfig, files: Sequence[Path], config: DataConfig, counts: "_Counts", advance: Callable[[int], None]
) -> Source:
    own = source.name if source.field else None
    options = ReadOptions(source.field or config.field, config.separator, source=own)
    scanned = [_scan_file(file, options, counts, advance) for file in files]
    _check_has_text(scanned, source.paths)
    fraction = 0.0 if config.validation_paths else config.validation_fraction
    total = sum(file.num_bytes for file in scanned)
    border = total - round(total * fraction)
    train, validation, start = [], [], 0
    for file in scanned:
        cut = min(max(0, border - start), file.num_bytes)
        train += [TextSlice(file, 0, cut)] if cut else []
        validation += [TextSlice(file, cut, file.num_bytes)] if cut < file.num_bytes else []
        start += file.num_bytes
    weight = source.weight if config.sources else None
    return Source(source.name, weight, options, tuple(train), tuple(validation))


def _whole(files: Sequence[ScannedFile]) -> tuple[TextSlice, ...]:
    return tuple(TextSlice(file, 0, file.num_bytes) for file in files)


def _check_has_text(files: Sequence[ScannedFile], paths: Sequence[str]) -> None:
    if not any(file.num_documents for file in files):
        count = f"{len(files)} file" if len(files) == 1 else f"{len(files)} files"
        raise DataError(f"the corpus is empty: {count} without text in {', '.join(paths)}")


def _scan_file(file: Path, options: ReadOptions, counts: "_Counts", advance: Callable[[int], None]) -> ScannedFile:
    with ThreadPoolExecutor(1, "scan") as counter:
        # Nothing is remembered yet, so there is no point in waiting for the name under which it would be.
        counted = counter.submit(_count, file, options) if counts.are_none else None
        how = [_VERSION, content_digest(file), kind_of(file), file.suffix, options.field, options.separator]
        digest = hashlib.sha256(json.dumps(how).encode()).hexdigest()
        found = counts.remembered(digest)
        if found is None:
            found = _count(file, options) if counted is None else counted.result()
            counts.remember(digest, found)
    advance(file.stat().st_size)
    return ScannedFile(file, digest, **found)


class _Counts:
    """What earlier passes counted, in a file for each text and way of reading it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.are_none = not any(directory.glob("scan-*.json"))

    def remembered(self, digest: str) -> dict[str, Any] | None:
        """Returns the counts of an earlier pass; None if there was none or its file is torn."""
        file = self._file(digest)
        try:
            counts = read_json(file) if file.is_file() else {}
        except CheckpointError:
            return None
        wanted = set(ScannedFile.__dataclass_fields__) - {"path", "digest"}
        return counts if set(counts) == wanted else None

    def remember(self, digest: str, counts: Mapping[str, Any]) -> None:
        """Keeps counts for later passes."""
        self._directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file(digest), json.dumps(counts) + "\n")

    def _file(self, digest: str) -> Path:
        return self._directory / f"scan-{digest[:32]}.json"


def _count(file: Path, options: ReadOptions) -> dict[str, Any]:
    notes = ReadNotes()
    num_documents = total = 0
    for block in read_blocks(file, options, notes):
        num_documents += block.num_documents
        total += block.num_bytes
    scanned = ScannedFile(file, "", num_documents, total, notes.num_blank, bool(notes.boms), bool(notes.crlf))
    return {name: value for name, value in asdict(scanned).items() if name not in ("path", "digest")}
