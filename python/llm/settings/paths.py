"""Checks paths before the work whose result they are for, and writes them as a shell reads them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from llm.errors import ConfigError


def check_directory(name: str, path: Path) -> None:
    """Checks that a path is a directory, or can become one.

    Args:
        name: The setting or option, for the message.
        path: What it was set to.

    Raises:
        ConfigError: The path, or one that it would lie in, is a file.
    """
    if (file := _file_on(path)) is not None:
        got = f"the file {path}" if file == path else f"{path} in the file {file}"
        raise ConfigError(f"`{name}` must be a directory, got {got}\nhint: name another path, or move the file away")


def check_file(name: str, path: Path) -> None:
    """Checks that a path can be written as a file.

    Args:
        name: The setting or option, for the message.
        path: What it was set to.

    Raises:
        ConfigError: The path is a directory, or one that it would lie in is a file.
    """
    if path.is_dir():
        example = path / "report.json"
        raise ConfigError(
            f"`{name}` must be a file, got the directory {path}\nhint: name a file in it, such as {example}"
        )
    if (file := _file_on(path.parent)) is not None:
        raise ConfigError(f"`{name}` must lie in a directory, got {path} in the file {file}")


def quoted(*words: str | os.PathLike[str]) -> str:
    """Returns words of a command as one types them, in quotes where a shell would read them otherwise."""
    texts = [os.fspath(word) for word in words]
    return subprocess.list2cmdline(texts) if sys.platform == "win32" else shlex.join(texts)


def _file_on(path: Path) -> Path | None:
    """Returns the first file on the way up from a path, itself included."""
    return next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None)
