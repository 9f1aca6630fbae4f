"""Text files of a corpus, from paths, directories and glob patterns."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from llm.errors import DataError, InvalidArgumentError
from llm.tokenization.files import StrPath

TEXT_SUFFIX = ".txt"
# Texts are grouped into batches of about this many characters, enough to keep all cores busy.
BATCH_CHARACTERS = 1 << 24


def corpus_files(paths: StrPath | Iterable[StrPath]) -> list[Path]:
    """Returns the files of `paths`, sorted and without duplicates.

    Args:
        paths: Files, directories (searched for `*.txt` at any depth) or patterns such as `corpus/**/*.txt`.

    Raises:
        DataError: A path doesn't exist, or a directory or pattern matches no file.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not listed:
        raise DataError("a corpus must have at least one file, got no paths")
    return sorted({file for path in listed for file in _expand(path)})


def read_corpus_file(path: Path) -> str:
    """Returns a file's text without translating line ends.

    Raises:
        DataError: The file can't be read or is not UTF-8; the message gives the offset of the first invalid byte.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: text must be UTF-8, got byte {error.object[error.start]:#04x} at offset {error.start}\n"
            f"hint: convert it, for example `iconv -f LATIN1 -t UTF-8 {path}`"
        ) from error


def batched_texts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields `texts` in batches, one for each call of the trainer.

    Raises:
        InvalidArgumentError: An item is not text.
    """
    if isinstance(texts, str):
        raise InvalidArgumentError("`texts` must be an iterable of texts, got one `str`\nhint: pass `[text]`")
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        if not isinstance(text, str):
            raise InvalidArgumentError(f"`texts` must have `str` items, got {type(text).__name__}")
        batch.append(text)
        num_characters += len(text)
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _expand(path: StrPath) -> list[Path]:
    path = Path(path)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in path.rglob(f"*{TEXT_SUFFIX}") if file.is_file()]
        what = f"directory without {TEXT_SUFFIX} files"
    elif glob.has_magic(str(path)):
        found = [Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file()]
        what = "pattern that matches no file"
    else:
        found, what = [], "no such file or directory"
    if not found:
        raise DataError(
            f"{path}: {what}\nhint: a corpus is UTF-8 text files, directories of {TEXT_SUFFIX} files or patterns"
        )
    return found
