"""Finds, reads and writes tokenizer files; a crash never leaves a partly written file."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from llm.errors import FileError, LLMError, TokenizerError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
EXTRA_TEMPLATES = "additional_chat_templates/*.jinja"
MAP_FILE = "special_tokens_map.json"
GENERATION_FILE = "generation_config.json"
MODEL_FILE = "config.json"

StrPath: TypeAlias = str | os.PathLike[str]


def tokenizer_file(path: StrPath) -> Path:
    """Returns the `tokenizer.json` at `path`, which is the file itself or its directory.

    Raises:
        FileError: The file doesn't exist.
        TokenizerError: The file has another format.
    """
    path = Path(path)
    if path.is_dir():
        path = path / TOKENIZER_FILE
    if not path.is_file():
        raise FileError(
            f"{path}: no such file\nhint: pass a {TOKENIZER_FILE} or a directory that contains one; "
            "`llm tokenizer train` creates one"
        )
    if path.suffix != ".json":
        raise TokenizerError(
            f"{path}: such a tokenizer must be a directory or a {TOKENIZER_FILE}, got a {path.suffix or path.name} file"
        )
    return path


def read_text(path: Path) -> str:
    """Returns the file's text.

    Raises:
        FileError: The file can't be read.
        TokenizerError: The file is not UTF-8, or only stands for the real file.
    """
    raise_if_stand_in(path, TokenizerError)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path}: must be UTF-8, got byte {error.object[error.start]:#04x} at offset {error.start}"
        ) from error


def read_bytes(path: Path) -> bytes:
    """Returns the file's bytes.

    Raises:
        FileError: The file can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: can't be read: {error.strerror}") from error


def read_head(path: Path, num_bytes: int) -> bytes:
    """Returns the first `num_bytes` bytes of a file, or the whole file if it is shorter.

    Raises:
        FileError: The file can't be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise FileError(f"{path}: can't be read: {error.strerror}") from error


def raise_if_stand_in(path: Path, error: type[LLMError]) -> None:
    """Raises an error for a file that only stands for the real one.

    Raises:
        FileError: The file can't be read.
        LLMError: A pointer of Git LFS or a web page, as an `error`.
    """
    start = read_head(path, 512).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"version https://git-lfs"):
        raise error(f"{path} is a pointer of Git LFS, not the file itself\nhint: run `git lfs pull` in its directory")
    if start[:9].lower() == b"<!doctype" or start[:5].lower() == b"<html":
        raise error(
            f"{path} is a web page, not the file itself\nhint: download the raw file; a gated model needs a login"
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the file's JSON object.

    Raises:
        FileError: The file can't be read.
        TokenizerError: The file is not a JSON object.
    """
    try:
        document = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path}: must be JSON: {error}") from error
    if not isinstance(document, dict):
        raise TokenizerError(f"{path}: must be a JSON object, got {type(document).__name__}")
    return document


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically: after an error, the old file is unchanged.

    Raises:
        FileError: The file can't be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: after an error, the old file is unchanged.

    Raises:
        FileError: The file can't be written.
    """
    with replaced_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """Yields a temporary file that replaces `path`, synced to disk, on exit; after an error, the old file stays.

    Raises:
        FileError: The file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # `mkstemp` sets mode 0600; other users should be able to read the file.
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: can't be written: {error.strerror}") from error
