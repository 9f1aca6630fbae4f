"""The dtype of matrix products under automatic mixed precision."""

import contextlib

import torch

from llm.training.float8 import check_float8

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that `precision` selects on `device`.

    `auto` selects bf16 if the device (GPU or CPU) has native bf16 arithmetic, otherwise fp16 on a GPU, otherwise fp32.
    `float8` stands for bf16, in which all products are made but those of the layers that `use_float8` converts.

    Raises:
        ConfigError: The precision is `float8`, and the device or an installed package doesn't allow it.
    """
    if precision == "float8":
        check_float8(device)
        return torch.bfloat16
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Returns a context that runs matrix products in `dtype`; for fp32, the context does nothing."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
