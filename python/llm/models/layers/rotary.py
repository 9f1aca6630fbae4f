"""Rotary, learned and sinusoidal position encodings."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.settings.model import ModelConfig, RopeScaling

Rotation = tuple[Tensor, Tensor]


class PositionEncoding(nn.Module):
    """No position encoding; subclasses add to embeddings or rotate queries and keys.

    Source: Kazemnejad et al. 2023, "The Impact of Positional Encoding on Length Generalization" (no encoding at all).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def embed(self, positions: Tensor) -> Tensor | None:
        """Returns a vector for each position, `[T, C]`, or None."""
        return None

    def rotation(self, positions: Tensor) -> Rotation | None:
        """Returns cosines and sines for each position, fp32 `[T, 1, D/2]` each, or None."""
        return None


class RotaryEmbedding(PositionEncoding):
    """Rotates pairs of a head's channels by an angle that grows with the position.

    Channel `i` is paired with `i + D/2` (the layout of Hugging Face's Llama). Angles are computed in fp64 for the
    requested positions only: a table of a long context would be larger than a small model.

    Source: Su et al. 2021, "RoFormer", equation 34.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.frequencies, self.factor = scaled_frequencies(config)
        self._frequencies = {torch.device("cpu"): self.frequencies}

    def rotation(self, positions: Tensor) -> Rotation:
        """Returns cosines and sines of `positions` (int64 `[T]`), each fp32 `[T, 1, D/2]`."""
        device = positions.device
        if device not in self._frequencies:
            self._frequencies[device] = self._frequencies[torch.device("cpu")].to(device)
        angles = positions[:, None].double() * self._frequencies[device]  # (T, D/2)
        cosine, sine = angles.cos() * self.factor, angles.sin() * self.factor
        return cosine.float().unsqueeze(1), sine.float().unsqueeze(1)


class LearnedPositions(PositionEncoding):
    """A trained vector for each position.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 4.1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))

    def embed(self, positions: Tensor) -> Tensor:
        """Returns the vectors of `positions` (int64 `[T]`), `[T, C]`."""
        return F.embedding(positions, self.weight)  # its gradient takes less time than an index's


class SinusoidalPositions(PositionEncoding):
    """Sines, then cosines, of geometrically spaced frequencies.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.width = config.hidden_size
        self.theta = config.rope_theta

    def embed(self, positions: Tensor) -> Tensor:
        """Returns the vectors of `positions` (int64 `[T]`), fp32 `[T, C]`."""
        steps = torch.arange(0, self.width, 2, dtype=torch.float64, device=positions.device)
        angles = positions[:, None].double() * self.theta ** (-steps / self.width)  # (T, C/2)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, : self.width].float()


def rotate(heads: Tensor, rotation: Rotation | None) -> Tensor:
    """Rotates the first channels of `heads` `[T, H, D]`, as many as `rotation` covers, in fp32; keeps the dtype."""
    if rotation is None:
        return heads
    cosine, sine = rotation
    width = 2 * cosine.shape[-1]
    if width < heads.shape[-1]:
        return torch.cat((rotate(heads[..., :width], rotation), heads[..., width:]), dim=-1)
    first, second = heads.float().chunk(2, dim=-1)  # (T, H, D/2) each
    rotated = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return rotated.to(heads.dtype)


def scaled_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Returns the angle per position of each pair, fp64 `[D/2]` on the CPU, and the factor on cosines and sines."""
    width, scaling = config.rotary_width, config.rope_scaling
    exponents = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
    frequencies = config.rope_theta**-exponents
    if scaling is None:
        return frequencies, 1.0
    match scaling.rope_type:
        case "linear":
            return frequencies / scaling.factor, 1.0
        case "llama3":
            return _llama3(frequencies, scaling), 1.0
        case "yarn":
            return _yarn(frequencies, scaling, config), yarn_attention_factor(scaling)
        case "longrope":
            return _longrope(frequencies, scaling, config)
        # Dynamic scaling applies only beyond the longest context, which no sequence exceeds here: it would change keys
        # that are already cached.
    return frequencies, 1.0


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Stretches long waves, keeps short ones, and blends in between.

    Source: Meta 2024, "The Llama 3 Herd of Models", section 3.4.2, and the model's published code.
    """
    original = scaling.original_max_position_embeddings or 1
    turns = original * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _longrope(frequencies: Tensor, scaling: RopeScaling, config: ModelConfig) -> tuple[Tensor, float]:
    """Divides each frequency by its own factor; a model with a longer context has its long factors at any length.

    Choosing by the length of a sequence, as `transformers` does, would change keys that are already cached.

    Source: Ding et al. 2024, "LongRoPE", section 3.2, and Phi-3's published code.
    """
    original = scaling.original_max_position_embeddings or 1
    is_longer = config.max_position_embeddings > original
    factors = scaling.long_factor if is_longer else scaling.short_factor
    on_scores = scaling.attention_factor
    if on_scores is None:
        on_scores = math.sqrt(1 + math.log(scaling.factor) / math.log(original)) if scaling.factor > 1 else 1.0
    return frequencies / torch.tensor(factors, dtype=torch.float64, device="cpu"), on_scores


def _yarn(frequencies: Tensor, scaling: RopeScaling, config: ModelConfig) -> Tensor:
    """Returns a ramp over the pairs, from unchanged waves to fully stretched waves.

    Source: Peng et al. 2023, "YaRN", equations 17 to 21.
    """
    original = scaling.original_max_position_embeddings or 1
    width = config.rotary_width

    def pair_with(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high = high if high > low else low + 0.001
    stretched = ((torch.arange(width // 2, dtype=torch.float64, device="cpu") - low) / (high - low)).clamp(0, 1)
    return frequencies * (1 - stretched + stretched / scaling.factor)


def query_scale(positions: Tensor, scaling: RopeScaling | None) -> Tensor | None:
    """Returns the factor on each token's queries, fp32 `[T, 1, 1]`, which grows with each further original context.

    Source: Nakanishi 2025, "Scalable-Softmax", section 3; Ministral 3's published code for the steps.
    """
    if scaling is None or scaling.llama_4_scaling_beta is None:
        return None
    steps = positions.double() / (scaling.original_max_position_embeddings or 1)
    factors = 1 + scaling.llama_4_scaling_beta * torch.log1p(steps.floor())
    return factors.float()[:, None, None]


def yarn_attention_factor(scaling: RopeScaling) -> float:
    """Returns the factor that compensates for the flatter softmax of a longer context.

    Source: Peng et al. 2023, "YaRN", equation 22; DeepSeek-AI 2024, "DeepSeek-V2", section 3.1.4, for the two scales.
    """
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_scale(scaling.factor, scaling.mscale) / yarn_scale(scaling.factor, scaling.mscale_all_dim)
    return yarn_scale(scaling.factor)


def yarn_scale(factor: float, scale: float = 1.0) -> float:
    """Returns `0.1 · scale · ln(factor) + 1`."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
