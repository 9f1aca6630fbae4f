"""Files and directories that appear whole or not at all, and locks between processes."""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

COMPLETE = "COMPLETE"


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Gives a temporary directory that becomes `target` by a rename, or not at all.

    Every file is synced, the marker `COMPLETE` is written last, then the directory is renamed; a crash at any point
    leaves what was there before, and at most a `.tmp-…` or `.old-…` directory that nobody reads.
    """
    temporary = target.parent / f".tmp-{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _sync(file)
        (temporary / COMPLETE).write_text("")
        _sync(temporary / COMPLETE)
        _sync(temporary)
        _swap(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap(temporary: Path, target: Path) -> None:
    """Puts `temporary` in the place of `target`, which is set aside first: a crash in between loses neither."""
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
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def write_atomically(file: Path, content: str | bytes) -> None:
    """Replaces `file` in one step: readers see the old content or the new, never a part."""
    temporary = file.with_name(f".tmp-{file.name}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    _sync(temporary)
    temporary.replace(file)
    _sync(file.parent)


@contextlib.contextmanager
def exclusive_lock(file: Path) -> Iterator[str | None]:
    """Locks `file` against other processes; gives `None`, or the id of the process that holds the lock already.

    The system drops the lock when its process ends, however that happens. File systems without locks lock nothing.
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


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
