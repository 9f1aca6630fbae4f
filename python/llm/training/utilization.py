"""What a device can do at most, and the memory in use on it."""

import functools
import sys
import time

import torch

# Dense operations per second in bf16 (fp16 where there is no bf16) and in fp32 outside of tensor cores, by the first
# name that the device's contains. Source: the makers' data sheets.
_CUDA_PEAKS = (
    ("B200", 2250e12, 80e12),
    ("GH200", 989e12, 67e12),
    ("H200", 989e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("A800", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L40", 181e12, 90.5e12),
    ("L4", 121e12, 30.3e12),
    ("A10G", 70e12, 35e12),
    ("A10", 125e12, 31.2e12),
    ("A6000", 155e12, 38.7e12),
    ("V100", 125e12, 15.7e12),
    ("T4", 65e12, 8.1e12),
    ("RTX 5090", 209e12, 104.8e12),
    ("RTX 4090", 165e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
)
_MEASURED_WIDTH = 768
_MEASURED_S = 0.1


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Returns the operations per second that `device` reaches at most in products of `dtype`; None if unknown.

    The peak of a GPU comes from its data sheet. A CPU's is what a product of two matrices reaches here with all
    threads of this process, so a share of it says how much of the time is spent on other things than products.
    """
    if device.type == "cuda":
        return cuda_peak(torch.cuda.get_device_name(device), dtype)
    return _cpu_peak(dtype, torch.get_num_threads()) if device.type == "cpu" else None


def cuda_peak(name: str, dtype: torch.dtype) -> float | None:
    """Returns the peak of the GPU called `name`; None for an unknown one."""
    for part, half, single in _CUDA_PEAKS:
        if part in name:
            return single if dtype == torch.float32 else half
    return None


@functools.cache
def _cpu_peak(dtype: torch.dtype, num_threads: int) -> float:
    matrix = torch.ones(_MEASURED_WIDTH, _MEASURED_WIDTH, dtype=dtype)
    best, started = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - started < _MEASURED_S:
        before, cpu_before = time.perf_counter(), time.process_time()
        torch.mm(matrix, matrix)
        # While other programs keep the cores busy, the clock runs on but the threads wait.
        best = min(best, time.perf_counter() - before, (time.process_time() - cpu_before) / num_threads)
    return 2 * _MEASURED_WIDTH**3 / best


def memory_bytes(device: torch.device) -> int | None:
    """Returns the peak of allocated memory on a GPU, otherwise the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident_bytes()


if sys.platform == "linux":
    import os

    _PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

    def _resident_bytes() -> int | None:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * _PAGE_BYTES

elif sys.platform == "darwin":
    import resource

    def _resident_bytes() -> int | None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the peak: the system tells no less

else:

    def _resident_bytes() -> int | None:
        return None
