"""Atomic writes of files and directories, and locks between processes."""

import contextlib
import errno
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from llm.checkpoint.space import explains_failed_writes

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

COMPLETE = "COMPLETE"
_PIECE_BYTES = 1 << 22
_EDITABLE = {".json", ".jinja"}  # people change sampling values and chat templates of a checkpoint


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yields a temporary directory that is renamed to `target` on success and removed on failure.

    Every file is synced, then the marker `COMPLETE` with the size and checksum of every file is written, then the
    directory is renamed. A crash at any point keeps the previous `target` and leaves at most a `.tmp-…` or `.old-…`
    directory, which nothing reads.

    Raises:
        FileError: The disk is full, or the directory can't be written.
    """
    temporary = unfinished(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with explains_failed_writes(target):
            temporary.mkdir(parents=True)
            yield temporary
            _complete(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _complete(temporary: Path, target: Path) -> None:
    for file in sorted(temporary.rglob("*")):
        sync(file)
    write_manifest(temporary)
    sync(temporary / COMPLETE)
    sync(temporary)
    _swap(temporary, target)


def unfinished(target: Path) -> Path:
    """Returns the directory in which `atomic_directory` lets `target` grow."""
    return target.parent / f".tmp-{target.name}"


def _swap(temporary: Path, target: Path) -> None:
    """Replaces `target` with `temporary`; `target` is set aside first, so a crash in between loses neither."""
    aside = target.parent / f".old-{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def write_manifest(directory: Path) -> None:
    """Writes the marker `COMPLETE`, which lists size and CRC-32 of every file below `directory`."""
    files = {str(file.relative_to(directory)): _size_and_checksum(file) for file in _files_below(directory)}
    (directory / COMPLETE).write_text(json.dumps(files) + "\n", encoding="utf-8")


def damage_in(directory: Path, *, read: bool = True, unread: Path | None = None) -> str | None:
    """Returns what differs from the list in the marker `COMPLETE`; None if nothing does, or if the list is missing.

    Args:
        directory: A directory that `atomic_directory` made.
        read: Whether to compare checksums too, for which every file is read (about 1 GB/s); otherwise only sizes.
        unread: Directory of files whose sizes alone are compared.
    """
    try:
        files = json.loads((directory / COMPLETE).read_text(encoding="utf-8") or "{}")
    except (OSError, ValueError) as error:
        return f"{COMPLETE} can't be read: {error}"
    for name, (size, checksum) in files.items():
        file = directory / name
        if file.parent == directory and file.suffix in _EDITABLE:
            continue
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if read and file.parent != unread and _size_and_checksum(file)[1] != checksum:
            return f"{name} has other bytes than were written"
    return None


def foreign_in(directory: Path) -> list[str]:
    """Returns the names in `directory` that are not of a checkpoint that `atomic_directory` wrote there."""
    try:
        own = set(json.loads((directory / COMPLETE).read_text(encoding="utf-8") or "{}")) | {COMPLETE}
    except (OSError, ValueError):
        own = set()
    folders = {str(parent) for name in own for parent in Path(name).parents}
    entries = (entry.relative_to(directory) for entry in directory.rglob("*"))
    return sorted({entry.parts[0] for entry in entries if str(entry) not in own | folders})


def _files_below(directory: Path) -> list[Path]:
    return [file for file in sorted(directory.rglob("*")) if file.is_file() and file.name != COMPLETE]


def _size_and_checksum(file: Path) -> tuple[int, int]:
    size = checksum = 0
    with file.open("rb", buffering=0) as opened:
        while piece := opened.read(_PIECE_BYTES):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return size, checksum


def write_atomically(file: Path, content: str | bytes) -> None:
    """Replaces the content of `file` in one step: readers see the old content or the new content, never a part."""
    temporary = file.with_name(f".tmp-{file.name}")
    with explains_failed_writes(file):
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(temporary)
        temporary.replace(file)
        sync(file.parent)


@contextlib.contextmanager
def exclusive_lock(file: Path) -> Iterator[str | None]:
    """Locks `file` against other processes; yields `None`, or the id of the process that already holds the lock.

    The operating system releases the lock when the process ends, even if killed. On file systems without locks,
    nothing is locked.
    """
    with file.open("a+", encoding="utf-8") as handle:
        try:
            _lock(handle.fileno())
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                handle.seek(0)
                yield handle.read().strip() or "(unknown)"
                return
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield None


def is_locked(file: Path) -> bool:
    """Returns whether a process holds the lock on `file`."""
    if not file.is_file():
        return False
    with file.open("rb") as handle:
        try:
            _lock(handle.fileno())
        except OSError as error:
            return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync(path: Path) -> None:
    """Waits until a file or a directory's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
