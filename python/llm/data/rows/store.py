"""Rows encoded once into shards: one of ids, one of what is learnt, for each file of each source."""

import contextlib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from llm.checkpoint import read_json
from llm.checkpoint.atomic import write_atomically
from llm.data.readers import Row, content_digest, corpus_files, read_rows
from llm.data.rows.encode import EncodedRow, PreferenceEncoder, RowEncoder
from llm.data.rows.formats import chat_row, format_of
from llm.data.rows.preferences import preference_format, preference_rows
from llm.data.shards import ShardWriter, damage_of
from llm.errors import DataError
from llm.progress import byte_progress
from llm.settings.run import DataConfig
from llm.settings.sources import SourceConfig
from llm.tokenization import BlockIds

MANIFEST = "rows.json"
# Rows that are encoded before their ids are written.
_ROWS = 256


@dataclass(frozen=True)
class RowFile:
    """A file of rows and the name of its shards.

    Attributes:
        path: The file.
        shard: Start of the names of its shards.
        has_margins: Whether a shard holds the margin of each sequence.
    """

    path: str
    shard: str
    has_margins: bool = False

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Returns the shard of ids, and the shard of what is learnt: 0 is not, 1 is, 2 is in an answer to avoid."""
        return folder / f"{self.shard}.bin", folder / f"{self.shard}-learnt.bin"

    def margins(self, folder: Path) -> Path:
        """Returns the shard of margins, whose ids are the bits of numbers in fp32."""
        return folder / f"{self.shard}-margins.bin"

    def is_whole(self, folder: Path) -> bool:
        """Returns whether all shards have the bytes that were written."""
        files = [*self.files(folder), *([self.margins(folder)] if self.has_margins else [])]
        return all(damage_of(file) is None for file in files)

    def where(self, idx: int, sequences: Callable[[Row], int] = lambda _: 1) -> str:
        """Returns where the row of a sequence stands, for messages.

        Args:
            idx: Index of the sequence among all of the file.
            sequences: Returns the number of sequences of a row.
        """
        first = 0
        with contextlib.suppress(DataError):
            for row in read_rows(Path(self.path)):
                first += sequences(row)
                if first > idx:
                    return row.where
        return f"{self.path}, row {idx + 1}"


@dataclass(frozen=True)
class RowSource:
    """One source of a mixture: its files, and whether it is there for validation only."""

    name: str
    weight: float | None
    files: tuple[RowFile, ...]
    is_held_out: bool = False


@dataclass(frozen=True)
class RowManifest:
    """What the rows of a run consist of.

    Attributes:
        folder: Where the shards are; None: beside the manifest.
        sources: Every source.
    """

    folder: str | None
    sources: tuple[RowSource, ...]

    @classmethod
    def read(cls, directory: Path) -> "RowManifest":
        """Reads the manifest of a run's data.

        Raises:
            CheckpointError: There is none.
        """
        content = read_json(directory / MANIFEST)
        sources = [
            RowSource(**one | {"files": tuple(RowFile(**file) for file in one["files"])}) for one in content["sources"]
        ]
        return cls(content["folder"], tuple(sources))

    def write(self, directory: Path) -> None:
        """Writes the manifest, which makes the rows exist."""
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / MANIFEST, json.dumps(asdict(self), indent=1) + "\n")

    @property
    def files(self) -> list[RowFile]:
        """Every file of every source."""
        return [file for source in self.sources for file in source.files]


def encode_rows(
    config: DataConfig, encoder: RowEncoder, directory: Path, *, cache: Path | None = None, progress: bool | None = None
) -> None:
    """Encodes the rows that aren't yet, and writes to `directory` which shards belong to which source.

    Args:
        config: Names the files and their format.
        encoder: Encodes a row.
        directory: The data of a run.
        cache: Where shards are kept for other runs; None keeps them in `directory`.
        progress: Whether to show a bar; None shows one on a terminal.

    Raises:
        DataError: There is no file, or a row is wrong; the message names file and line.
        FileError: The disk is full.
        MissingExtraError: A file needs a package that is not installed.
    """
    folder = directory if cache is None else cache
    sources = _sources(config, encoder)
    manifest = RowManifest(None if cache is None else str(cache.absolute()), tuple(sources))
    missing = list({file.shard: file for file in manifest.files if not file.is_whole(folder)}.values())
    with byte_progress("Encoding rows", sum(_size(file) for file in missing), wanted=progress) as advance:
        for file in missing:
            _write(file, encoder, config.row_format, folder)
            advance(_size(file))
    manifest.write(directory)


def mend_rows(config: DataConfig, encoder: RowEncoder, directory: Path) -> list[str]:
    """Checks the shards of a run and encodes damaged ones anew; returns a sentence about each.

    Raises:
        DataError: A shard is damaged, and its file is not what it was when the run began.
    """
    manifest = RowManifest.read(directory)
    folder = Path(manifest.folder or directory)
    damaged = [file for file in manifest.files if not file.is_whole(folder)]
    for file in damaged:
        if not Path(file.path).is_file() or _shard(Path(file.path), encoder, config.row_format) != file.shard:
            raise DataError(
                f"{file.files(folder)[0]} is damaged or missing, and {file.path} is not what it was when the run "
                "began\nhint: put the file back, or start a new run"
            )
        _write(file, encoder, config.row_format, folder)
    return [f"{file.files(folder)[0]} was damaged: encoded anew" for file in damaged]


def count_rows(config: DataConfig) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Yields the name of each source, its number of files, and its rows by format; nothing is encoded.

    Raises:
        DataError: There is no file, or a row is wrong; the message names file and line.
    """
    held_out = [SourceConfig(name="validation", paths=config.validation_paths)] if config.validation_paths else []
    for source in (*config.all_sources, *held_out):
        files = corpus_files(source.paths)
        counts: Counter[str] = Counter()
        is_preference = config.kind == "preference"
        for row in (row for file in files for row in read_rows(file)):
            (preference_rows if is_preference else chat_row)(row, config.row_format)
            found = preference_format(row.values) if is_preference else format_of(row.values)
            counts[config.row_format if config.row_format != "auto" else str(found)] += 1
        yield source.name, len(files), dict(counts)


def _sources(config: DataConfig, encoder: RowEncoder) -> list[RowSource]:
    named = config.all_sources
    if not any(source.paths for source in named):
        raise DataError("no data was named\nhint: pass `--data FILE` (.jsonl or .parquet), a directory or a pattern")

    def listed(paths: Sequence[str]) -> tuple[RowFile, ...]:
        has_margins = isinstance(encoder, PreferenceEncoder)
        shards = ((str(one), _shard(one, encoder, config.row_format)) for one in corpus_files(paths))
        return tuple(RowFile(path, shard, has_margins) for path, shard in shards)

    weights = [source.weight if config.sources else None for source in named]
    found = [RowSource(one.name, weight, listed(one.paths)) for one, weight in zip(named, weights, strict=True)]
    if config.validation_paths:
        found.append(RowSource("validation", 0.0, listed(config.validation_paths), is_held_out=True))
    return found


def _shard(file: Path, encoder: RowEncoder, row_format: str) -> str:
    """Returns a name that says what a shard is made from."""
    made_from = [encoder.digest, content_digest(file), "".join(file.suffixes), row_format]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]


def _size(file: RowFile) -> int:
    return Path(file.path).stat().st_size


def _write(file: RowFile, encoder: RowEncoder, row_format: str, folder: Path) -> None:
    ids_file, learnt_file = file.files(folder)
    with contextlib.ExitStack() as stack:
        margins = stack.enter_context(ShardWriter(file.margins(folder), 2**32)) if file.has_margins else None
        learnt = stack.enter_context(ShardWriter(learnt_file, 3))
        ids = stack.enter_context(ShardWriter(ids_file, encoder.tokenizer.vocab_size))
        for rows in _batches(_encoded(file, encoder, row_format)):
            ends = np.cumsum([len(row.ids) for row in rows])
            ids.write(BlockIds(np.concatenate([row.ids for row in rows]), ends))
            marks = [row.is_learnt * np.uint16(1 if row.is_wanted else 2) for row in rows]
            learnt.write(BlockIds(np.concatenate(marks), ends))
            if margins is not None:
                bits = np.array([row.margin for row in rows], np.float32).view(np.uint32)
                margins.write(BlockIds(bits, np.arange(1, len(rows) + 1)))


def _encoded(file: RowFile, encoder: RowEncoder, row_format: str) -> Iterator[EncodedRow]:
    num_rows = 0
    for num_rows, row in enumerate(read_rows(Path(file.path)), 1):  # noqa: B007 (counts)
        for sequence in encoder.read(row, row_format):
            yield encoder.encode(sequence, row.where)
    if num_rows == 0:
        raise DataError(f"{file.path}: the file has no rows")


def _batches(rows: Iterator[EncodedRow]) -> Iterator[list[EncodedRow]]:
    while batch := list(itertools.islice(rows, _ROWS)):
        yield batch
