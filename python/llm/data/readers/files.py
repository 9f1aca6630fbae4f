"""The files of a corpus, found by paths, directories and patterns, and what each of them holds."""

import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from llm.errors import DataError

_KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".zst")
_READABLE = "text (.txt, .md), .jsonl and .parquet; .gz and .zst around text and .jsonl"
# Formats that would be read as text without an error: a model then learns braces and commas.
_WAYS_OUT = {
    ".json": "write one JSON object a line into a .jsonl file, for example `jq -c '.[]' {0} > corpus.jsonl`",
    ".csv": 'convert it: `python -c "import pyarrow.csv as c, pyarrow.parquet as p; '
    "p.write_table(c.read_csv('{0}'), 'corpus.parquet')\"`",
    ".zip": "unpack it first: `unzip {0}`",
    ".bz2": "unpack it first: `bunzip2 {0}`",
    ".xz": "unpack it first: `unxz {0}`",
    ".tar": "unpack it first: `tar -xf {0}`",
    ".tgz": "unpack it first: `tar -xf {0}`",
    ".pdf": "extract the text first: `pdftotext {0}`",
    ".docx": "save the document as plain text",
    ".epub": "convert the book to plain text",
}
_WAYS_OUT[".tsv"] = _WAYS_OUT[".csv"]


def corpus_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Returns the files of `paths`, sorted and without duplicates.

    Args:
        paths: Files of any name, directories (searched at any depth for names that end like a corpus) or patterns such
            as `corpus/**/*.jsonl`.

    Raises:
        DataError: A path doesn't exist, a directory or pattern matches no file, or a file has a format that isn't read.
    """
    paths = list(paths)
    if not all(os.fspath(path) for path in paths):
        raise DataError("a path of data must not be empty\nhint: `.` is the working directory")
    found = sorted({file for path in paths for file in _expand(Path(path))})
    for file in found:
        kind_of(file)
    return found


def kind_of(file: Path) -> str:
    """Returns what a file holds by its name: `text`, `jsonl` or `parquet`; any unknown name is text.

    Raises:
        DataError: The name says that the file has a format that isn't read.
    """
    suffix = _inner_suffix(file)
    if suffix in _WAYS_OUT or file.name.endswith((".tar.gz", ".tar.zst")):
        way_out = _WAYS_OUT.get(suffix, _WAYS_OUT[".tar"]).format(file)
        raise DataError(
            f"{file}: {suffix or file.suffix} files can't be read; a corpus is {_READABLE}\nhint: {way_out}"
        )
    return _KINDS.get(suffix, "text")


def _inner_suffix(file: Path) -> str:
    """The suffix below the one of a compression, in lower case: `.jsonl` for `a.JSONL.gz`."""
    suffix = file.suffix.lower()
    return Path(file.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in path.rglob("*") if _inner_suffix(file) in _KINDS and file.is_file()]
        what = f"directory without files of {_READABLE}"
    elif glob.has_magic(str(path)):
        found = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
        what = "pattern that matches no file"
    else:
        found, what = [], "no such file or directory"
    if not found:
        raise DataError(f"{path}: {what}\nhint: a corpus is files, directories or patterns of {_READABLE}")
    return found


def content_digest(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes.

    Raises:
        DataError: The file can't be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error
