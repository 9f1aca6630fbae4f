"""Converts Llama 3's rotary scaling to the tensor of frequency factors in GGUF files and back.

Source: ggml-org/llama.cpp `conversion/llama.py`, `generate_extra_tensors`; huggingface/transformers
`modeling_rope_utils.py`, `_compute_llama3_parameters`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Values of every published Llama 3.
_PUBLISHED: Mapping[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_factors(scaling: Mapping[str, Any], rope_theta: float, head_dim: int) -> Tensor:
    """Returns the divisor of each frequency.

    Args:
        scaling: `factor`, `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings`.
        rope_theta: Base of the frequencies.
        head_dim: D, even.

    Returns:
        Shape (D / 2,), float32.
    """
    turns = scaling["original_max_position_embeddings"] * _frequencies(rope_theta, head_dim) / (2 * math.pi)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    factors: Tensor = 1 / ((1 - smooth) / factor + smooth)
    return factors.float()


def llama3_scaling(factors: Tensor, rope_theta: float, head_dim: int) -> dict[str, Any] | None:
    """Returns the parameters that give these factors, or None.

    Args:
        factors: Shape (D / 2,), float32.
        rope_theta: Base of the frequencies.
        head_dim: D, even.
    """
    factor = float(factors.max()) if len(factors) else 0.0
    if len(factors) != head_dim // 2 or not bool(factors.isfinite().all()) or factor <= 1:
        return None
    for guess in (_PUBLISHED, _fitted(factors.double(), factor, _frequencies(rope_theta, head_dim))):
        scaling = {"rope_type": "llama3", "factor": factor, **guess}
        if torch.allclose(llama3_factors(scaling, rope_theta, head_dim), factors, rtol=1e-5, atol=0.0):
            return scaling
    return None


def _frequencies(rope_theta: float, head_dim: int) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / -head_dim  # (D / 2,)
    return torch.pow(rope_theta, exponents)


def _fitted(factors: Tensor, factor: float, frequencies: Tensor) -> dict[str, Any]:
    """Fits parameters to the factors between 1 and the largest; the low one is set to 1, as only ratios count."""
    between = ((factors > 1.0001) & (factors < factor * 0.9999)).nonzero().flatten()
    if len(between) < 2:
        return {**_PUBLISHED, "original_max_position_embeddings": _original(factors, factor, frequencies)}
    first, last = int(between[0]), int(between[-1])
    smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)
    slope = float((smooth[first] - smooth[last]) / (frequencies[first] - frequencies[last]))
    rest = max(slope * float(frequencies[first]) - float(smooth[first]), 1e-9)  # low / (high - low)
    return {
        "low_freq_factor": 1.0,
        "high_freq_factor": round(1 + 1 / rest, 3),
        "original_max_position_embeddings": round(2 * math.pi * slope / rest),
    }


def _original(factors: Tensor, factor: float, frequencies: Tensor) -> int:
    """Returns the original context if at most one factor lies between 1 and the largest, for 1 to 4 turns in it."""
    ones = int((factors <= 1.0001).sum())
    below = float(frequencies[min(ones, len(frequencies) - 1)])
    if ones < len(factors) and float(factors[ones]) < factor * 0.9999:
        smooth = (1 / float(factors[ones]) - 1 / factor) / (1 - 1 / factor)
        return round(2 * math.pi * (1 + 3 * smooth) / below)
    above = float(frequencies[max(ones - 1, 0)])
    return round(2 * math.pi * 2 / math.sqrt(above * below))
