"""Quantises to the types of llama.cpp whose blocks of 256 values have scales of scales: Q4_K and Q6_K.

Source: ggml-org/ggml `src/ggml-quants.c` for the layout of blocks. The search for scales is this package's own.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes: TypeAlias = NDArray[np.uint8]

_BLOCK = 256
# Blocks at a time, so that their values stay in the cache.
_CHUNK_BLOCKS = 256
# Ranges that are tried for each group of a Q4_K block, as shares of the whole range.
_RANGES = (1.0, 0.97, 0.94, 0.91, 0.88, 0.84)
_SHARES = (1.0, 0.98, 0.96, 0.94, 1.02, -1.03, -1.01, -0.99, -0.97)
_ROUNDS = 3


def encode_q4_k(values: Tensor) -> Bytes:
    """Returns the bytes of rows, fp32 `[..., columns]`, columns a multiple of 256, as uint8 `[..., bytes]`."""
    return _encoded(values, _q4_k_blocks, 144)


def encode_q6_k(values: Tensor) -> Bytes:
    """Returns the bytes of rows; see `encode_q4_k`."""
    return _encoded(values, _q6_k_blocks, 210)


def _encoded(values: Tensor, encode: Callable[[Tensor], Bytes], num_bytes: int) -> Bytes:
    blocks = values.reshape(-1, _BLOCK)
    out = np.empty((len(blocks), num_bytes), dtype=np.uint8)
    for start in range(0, len(blocks), _CHUNK_BLOCKS):
        out[start : start + _CHUNK_BLOCKS] = encode(blocks[start : start + _CHUNK_BLOCKS])
    return out.reshape(*values.shape[:-1], -1)


def _halves(scales: Tensor) -> tuple[Tensor, Bytes]:
    """Returns scales as they are stored, fp32 `[N, 1]`, and their bytes."""
    stored = scales.to(torch.float16)
    return stored.float(), stored.view(torch.uint8).numpy()


def _divided(values: Tensor, scales: Tensor) -> Tensor:
    """Returns the quotients, or zeros where the scale is zero."""
    return values / torch.where(scales == 0, torch.inf, scales)


def _q4_k_blocks(blocks: Tensor) -> Bytes:
    """Values are `d · scale · code - dmin · minimum`, with eight groups of 32 to a block and scales of six bits."""
    groups = blocks.view(-1, 8, 32)
    scales, minima = _ranges(groups)  # (N, 8)
    step, step_bytes = _halves(scales.amax(1, keepdim=True) / 63)
    offset, offset_bytes = _halves(minima.amax(1, keepdim=True) / 63)
    whole_scales = _divided(scales, step).round().clamp(0, 63)
    whole_minima = _divided(minima, offset).round().clamp(0, 63)
    for _ in range(_ROUNDS):
        codes = _four_bits(groups, whole_scales * step, whole_minima * offset)
        scales, minima = _line(groups, codes)
        whole_scales, whole_minima = _better(
            groups,
            (step, offset),
            (whole_scales, whole_minima),
            (_divided(scales, step).round().clamp(0, 63), _divided(minima, offset).round().clamp(0, 63)),
        )
    codes = _four_bits(groups, whole_scales * step, whole_minima * offset).to(torch.uint8)
    pairs = codes.view(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    packed = _six_bits(whole_scales.to(torch.uint8), whole_minima.to(torch.uint8))
    return np.concatenate((step_bytes, offset_bytes, packed.numpy(), nibbles.numpy()), axis=1)


def _ranges(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scale and the subtracted minimum of each group that lose least, `[N, 8]` each, neither below zero."""
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1)
    best = torch.full_like(low, torch.inf)
    scales, minima = torch.zeros_like(low), torch.zeros_like(low)
    for share in _RANGES:
        middle, half = (high + low) / 2, (high - low) / 2 * share
        scale, minimum = 2 * half / 15, (half - middle).clamp_min(0)
        for _ in range(2):
            codes = _four_bits(groups, scale, minimum)
            lost = _four_bit_loss(groups, codes, scale, minimum)
            wins = lost < best
            best = torch.where(wins, lost, best)
            scales, minima = torch.where(wins, scale, scales), torch.where(wins, minimum, minima)
            scale, minimum = _line(groups, codes)
    return scales, minima


def _four_bits(groups: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    return _divided(groups + minima.unsqueeze(-1), scales.unsqueeze(-1)).round_().clamp_(0, 15)


def _four_bit_loss(groups: Tensor, codes: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    return (codes * scales.unsqueeze(-1) - minima.unsqueeze(-1) - groups).square().sum(-1)


def _line(groups: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scale and the subtracted minimum of least squares for given codes, neither below zero."""
    mean_code, mean_value = codes.mean(-1), groups.mean(-1)
    spread = (codes - mean_code.unsqueeze(-1)).square().sum(-1)
    shared = ((codes - mean_code.unsqueeze(-1)) * groups).sum(-1)
    scales = _divided(shared, spread).clamp_min(0)
    minima = scales * mean_code - mean_value
    alone = _divided((codes * groups).sum(-1), codes.square().sum(-1)).clamp_min(0)
    return torch.where(minima < 0, alone, scales), minima.clamp_min(0)


def _better(
    groups: Tensor, steps: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns, for each group, the pair of whole scale and minimum that loses less."""
    losses = []
    for scales, minima in (old, new):
        scale, minimum = scales * steps[0], minima * steps[1]
        losses.append(_four_bit_loss(groups, _four_bits(groups, scale, minimum), scale, minimum))
    wins = losses[1] < losses[0]
    return torch.where(wins, new[0], old[0]), torch.where(wins, new[1], old[1])


def _six_bits(scales: Tensor, minima: Tensor) -> Tensor:
    """Packs eight scales and eight minima of six bits into twelve bytes."""
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    third = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
    return torch.cat((first, second, third), 1)


def _q6_k_blocks(blocks: Tensor) -> Bytes:
    """Values are `d · scale · (code - 32)`, with sixteen groups of 16 to a block and scales of eight bits."""
    groups = blocks.view(-1, 16, 16)
    scales = _best_six_bit_scales(groups)  # (N, 16)
    largest = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    step, step_bytes = _halves(largest / -128)
    whole = _divided(scales, step).round().clamp(-128, 127)
    for _ in range(_ROUNDS):
        codes = _six_bit_codes(groups, whole * step)
        fitted = _divided((codes * groups).sum(-1), codes.square().sum(-1))
        new = _divided(fitted, step).round().clamp(-128, 127)
        wins = _six_bit_loss(groups, new * step) < _six_bit_loss(groups, whole * step)
        whole = torch.where(wins, new, whole)
    codes = (_six_bit_codes(groups, whole * step) + 32).to(torch.uint8).view(-1, 2, 4, 32)
    low = codes[:, :, :2] & 15 | (codes[:, :, 2:] & 15) << 4  # (N, 2, 2, 32)
    high = torch.zeros_like(codes[:, :, 0])
    for place in range(4):
        high |= (codes[:, :, place] >> 4) << 2 * place
    parts = (low.reshape(-1, 128), high.reshape(-1, 64), whole.to(torch.int8).view(torch.uint8))
    return np.concatenate((torch.cat(parts, 1).numpy(), step_bytes), axis=1)


def _best_six_bit_scales(groups: Tensor) -> Tensor:
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    best = largest / -32
    lost = _six_bit_loss(groups, best)
    for share in _SHARES[1:]:
        scale = largest / -32 * share
        new = _six_bit_loss(groups, scale)
        wins = new < lost
        best, lost = torch.where(wins, scale, best), torch.where(wins, new, lost)
    return best


def _six_bit_codes(groups: Tensor, scales: Tensor) -> Tensor:
    return _divided(groups, scales.unsqueeze(-1)).round_().clamp_(-32, 31)


def _six_bit_loss(groups: Tensor, scales: Tensor) -> Tensor:
    return (_six_bit_codes(groups, scales) * scales.unsqueeze(-1) - groups).square().sum(-1)
