"""Converts the rotary scalings of Llama 3 and Phi-3 to the tensors of frequency factors in GGUF files and back.

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


def longrope_factor(scaling: Mapping[str, Any], context: int) -> float:
    """Returns the factor on cosines and sines of a model whose longest context is `context`.

    Source: Ding et al. 2024, "LongRoPE", section 3.2, and Phi-3's published code.
    """
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    original = scaling["original_max_position_embeddings"]
    factor = scaling.get("factor") or context / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def longrope_scaling(short: Tensor, long: Tensor, original: int, context: int, factor: float) -> dict[str, Any]:
    """Returns the parameters of a longrope scaling.

    Args:
        short: Divisors of the frequencies up to the context of the first training, shape (D / 2,), float32.
        long: Divisors beyond it, shape (D / 2,), float32.
        original: Context of the first training in tokens.
        context: Longest context in tokens.
        factor: Factor on cosines and sines.
    """
    both = {"short_factor": _decimals(short), "long_factor": _decimals(long)}
    found = {"rope_type": "longrope", "original_max_position_embeddings": original, **both}
    is_usual = math.isclose(longrope_factor(found, context), factor, rel_tol=1e-6)
    return found if is_usual else found | {"attention_factor": factor}


def _decimals(values: Tensor) -> list[float]:
    """Returns the shortest decimals that give the same float32."""
    return [float(str(value)) for value in values.numpy()]


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
