"""Formats of cached keys and values: the model's own numbers, 8-bit integers with a scale per head, or 8-bit floats."""

import torch
from torch import Tensor

# Types of the cache's tensors. PyTorch can't index tensors of 8-bit floats, so the cache holds their bytes.
INT8, FP8 = torch.int8, torch.uint8

_SCALE_BYTES = 2
_LARGEST_CODE = 127
_SMALLEST_SCALE = 2.0**-126  # the reciprocal of a smaller scale may be infinite
_LARGEST_FP8 = 448.0


def is_packed(dtype: torch.dtype) -> bool:
    """Returns whether a cache of this type holds encoded numbers instead of the model's own."""
    return dtype in (INT8, FP8)


def kept_width(width: int, dtype: torch.dtype) -> int:
    """Returns the last dimension of a tensor for heads of `width` channels; an integer head ends in its scale."""
    return width + _SCALE_BYTES if dtype == INT8 and width else width


def head_width(width: int, dtype: torch.dtype) -> int:
    """Returns the number of channels of a head whose tensor has `width` as last dimension."""
    return width - _SCALE_BYTES if dtype == INT8 and width else width


def keep(heads: Tensor, dtype: torch.dtype) -> Tensor:
    """Encodes heads `[..., D]` for a cache of type `dtype`; each head by itself, so that none depends on another.

    The scale of an integer head is its largest magnitude over 127, rounded up to bf16, and follows its codes. A head
    that is not finite gets NaN as its scale, so that it is not finite when restored either.

    Source: Dettmers et al. 2022, "LLM.int8()", section 2.1 (absmax quantization), per head.
    """
    if dtype == FP8:
        return heads.float().clamp(-_LARGEST_FP8, _LARGEST_FP8).to(torch.float8_e4m3fn).view(FP8)
    if dtype != INT8:
        return heads
    exact = heads.float()
    scale = _rounded_up(exact.abs().amax(-1, keepdim=True) / _LARGEST_CODE)  # (..., 1)
    codes = (exact * scale.float().reciprocal()).round()
    codes = torch.where(scale.isfinite(), codes, 0).to(INT8)
    return torch.cat((codes, scale.view(INT8)), dim=-1)


def restore(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Decodes what `keep` encoded, `[..., D]` in `dtype`; numbers that are not encoded are returned as they are."""
    if kept.dtype == FP8:
        return kept.view(torch.float8_e4m3fn).to(dtype)
    if kept.dtype != INT8:
        return kept
    # A copy, since a view as bf16 must begin at an even address.
    scale = kept[..., -_SCALE_BYTES:].clone(memory_format=torch.contiguous_format).view(torch.bfloat16)
    return (kept[..., :-_SCALE_BYTES].float() * scale.float()).to(dtype)


def keep_keys(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Encodes keys as `keep` does values; channels of integer keys are mixed first, as a few are far above others."""
    return keep(mixed(keys), dtype) if dtype == INT8 else keep(keys, dtype)


def restore_keys(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Decodes what `keep_keys` encoded, `[..., D]` in `dtype`."""
    if kept.dtype != INT8:
        return restore(kept, dtype)
    found = mixed(restore(kept, torch.float32))
    return (found / mixed_channels(found.shape[-1])).to(dtype)


def mixed_channels(width: int) -> int:
    """Returns the channels of a block of `mixed`: the largest power of two that divides the width."""
    return width & -width


def mixed(heads: Tensor) -> Tensor:
    """Multiplies each block of heads `[..., D]` with the Walsh-Hadamard matrix, computed in fp32.

    The matrix consists of 1 and -1; its square is the block's size times the identity. So products of two heads that
    are both mixed grow by that size, and a channel far above the others is spread over its block.

    Source: Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", section 4, key rotation.
    """
    shape, found, half = heads.shape, heads.float(), 1
    while half < mixed_channels(shape[-1]):
        first, second = found.reshape(*shape[:-1], -1, 2, half).unbind(-2)
        found = torch.stack((first + second, first - second), dim=-2).view(shape)
        half *= 2
    return found


def _rounded_up(steps: Tensor) -> Tensor:
    """Returns the smallest bf16 at or above each positive number, so that no code exceeds the largest."""
    bits = steps.clamp_min(_SMALLEST_SCALE).view(torch.int32)
    upper = ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(steps.isfinite(), upper, torch.nan)
