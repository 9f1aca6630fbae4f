"""Words for disks that are full or can't be written."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from llm.errors import FileError

_ROOM = "make room there, then go on; what was written before is whole"
_PLACE = "name a place that can be written"
_WAYS_OUT = dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST), _PLACE)


@contextlib.contextmanager
def explains_failed_writes(target: Path) -> Iterator[None]:
    """Turns an error of the system while `target` is written into a `FileError` that names the disk's free bytes.

    Raises:
        FileError: The disk is full, a limit is reached, or the place can't be written.
    """
    try:
        yield
    except FileError:
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(
            f"{target} can't be written: {reason} ({in_words(free_bytes(target))} free on its disk)\n"
            f"hint: {_WAYS_OUT.get(error.errno or 0, _ROOM) if isinstance(error, OSError) else _ROOM}"
        ) from error


def free_bytes(path: Path) -> int:
    """Returns the free bytes of the disk that `path` is on or will be on."""
    existing = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def in_words(num_bytes: float) -> str:
    """Returns a size such as `1.5 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
