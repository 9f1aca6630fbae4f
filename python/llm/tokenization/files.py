"""Files of a tokenizer: found, read and written so that a crash never leaves half of one."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from llm.errors import FileError, TokenizerError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
EXTRA_TEMPLATES = "additional_chat_templates/*.jinja"
MAP_FILE = "special_tokens_map.json"
GENERATION_FILE = "generation_config.json"

StrPath: TypeAlias = str | os.PathLike[str]


def tokenizer_file(path: StrPath) -> Path:
    """The `tokenizer.json` that `path` means: the file itself, or the one in that directory.

    Raises:
        FileError: There is no such file.
        TokenizerError: It is a file of another format.
    """
    path = Path(path)
    if path.is_dir():
        path = path / TOKENIZER_FILE
    if not path.is_file():
        raise FileError(
            f"{path}: no such file\nhint: give a directory that has {TOKENIZER_FILE}, or such a file; "
            "`llm tokenizer train` makes one"
        )
    if path.suffix != ".json":
        raise TokenizerError(
            f"{path}: such a tokenizer must be a directory or a {TOKENIZER_FILE}, got a {path.suffix or path.name} file"
        )
    return path


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        FileError: It can't be read.
        TokenizerError: It is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{path}: must be UTF-8, got byte {error.object[error.start]:#04x} at offset {error.start}"
        ) from error


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        FileError: It can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: can't be read: {error.strerror}") from error


def read_head(path: Path, num_bytes: int) -> bytes:
    """The first bytes of a file, fewer if it is shorter.

    Raises:
        FileError: It can't be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise FileError(f"{path}: can't be read: {error.strerror}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The file's JSON object.

    Raises:
        FileError: It can't be read.
        TokenizerError: It is not a JSON object.
    """
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}: must be JSON: {error}") from error
    if not isinstance(document, dict):
        raise TokenizerError(f"{path}: must be a JSON object, got {type(document).__name__}")
    return document


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or leaves the old one; see `write_bytes`.

    Raises:
        FileError: It can't be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes the whole file or leaves the old one; see `replaced_file`.

    Raises:
        FileError: It can't be written.
    """
    with replaced_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """Gives a temporary file that takes the place of `path`, synced, once all is written; else the old one stays.

    Raises:
        FileError: It can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # `mkstemp` gives 0600; other users may read what was written.
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: can't be written: {error.strerror}") from error
