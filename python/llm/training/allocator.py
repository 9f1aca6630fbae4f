"""The C library's memory, while a model trains on a CPU."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

# Parameters of glibc's `mallopt`.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 2**30
# What glibc's own adjustment reaches for blocks of the sizes of activations.
_USUAL = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}


@contextlib.contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Lets glibc keep freed memory for the next allocation, as long as a model trains on a CPU.

    Otherwise, glibc returns the activations' memory to the system in every step and asks for it again, and the system
    clears it each time: 5 % of the step of a model with 12 million parameters. The peak of memory stays the same.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    for parameter in _USUAL:
        library.mallopt(parameter, _KEPT)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
