"""The shape, learning rate and batch of a model, from one number: its parameters."""

import math
import re

import msgspec

from llm.errors import ConfigError
from llm.settings.model import ModelConfig

# A head is this wide where the model is wide enough for two heads or more.
_HEAD_WIDTH = 64
# Width / depth of a balanced model: wider models learn more from a step's time, deeper ones more from a parameter.
_WIDTH_PER_LAYER = 64
_WIDTHS = (32, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024, *range(1280, 12289, 256))
_DEPTHS = range(2, 97)
# The learning rate that suits a width of 256; it falls with the width. Measured for Muon on 1 MB of text.
_RATES = {"muon": 4e-3, "adamw": 2e-3, "adamw8bit": 2e-3}
_RATE_WIDTH = 256
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}


def parameters_of_size(size: str) -> float:
    """Returns the number of parameters that a text such as `15M`, `1.1B` or `500k` means.

    Raises:
        ConfigError: The text is no such number.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMbBgG]?)", size.strip())
    number = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    if not 10_000 <= number <= 1e12:
        raise ConfigError(f"`training.size` must be 10k to 1000B parameters, such as 15M, got {size!r}")
    return number


def passes_of_batch(batch_size: int, wanted: int) -> int:
    """Returns a number of equal passes of a batch: the next from `wanted` on that divides it.

    Where that makes passes over four times as small, one is taken whose passes are at most twice as large, if there is.
    """
    wanted = min(wanted, batch_size)
    divisors = [number for number in range(1, batch_size + 1) if batch_size % number == 0]
    above = next(number for number in divisors if number >= wanted)
    below = max((number for number in divisors if wanted <= 2 * number < 2 * wanted), default=above)
    return above if above <= 4 * wanted else below


def shape_of_size(num_parameters: float, vocab_size: int, base: ModelConfig) -> ModelConfig:
    """Returns `base` with the depth, width and heads of a model of about `num_parameters`, embeddings included.

    Of all widths and depths, the rule takes those that come closest in size with a width of about 64 × depth. A block
    has 12 × width² parameters: four square matrices of attention and three of the feed-forward, 8/3 × width wide.

    Args:
        num_parameters: Parameters to aim at.
        vocab_size: Entries of the vocabulary.
        base: The settings besides the shape.

    Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1 (12 × width² × depth) and
    figure 5 (the ratio of width to depth hardly matters); Shazeer 2020, "GLU Variants Improve Transformer" (8/3).
    """
    outside = vocab_size * (1 if base.tie_word_embeddings else 2)

    def misfit(width: int, depth: int) -> float:
        size = (4 * width + 3 * _feed_forward_width(width)) * width * depth + outside * width
        return abs(math.log(size / num_parameters)) + 0.15 * abs(math.log(width / depth / _WIDTH_PER_LAYER))

    width, depth = min(((width, depth) for width in _WIDTHS for depth in _DEPTHS), key=lambda shape: misfit(*shape))
    heads = max(1, width // _HEAD_WIDTH) if width % _HEAD_WIDTH == 0 else max(1, width // 32)
    return msgspec.structs.replace(
        base,
        hidden_size=width,
        intermediate_size=_feed_forward_width(width),
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )


def _feed_forward_width(width: int) -> int:
    return max(32, round(8 * width / 3 / 32) * 32)


def learning_rate_of(optimizer: str, width: int) -> float:
    """Returns the peak learning rate of a model `width` wide: inversely proportional to its width.

    Source: Yang et al. 2022, "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer",
    table 3 (Adam's rate of hidden matrices falls with the width).
    """
    rate = _RATES[optimizer] * min(1.5, _RATE_WIDTH / width)
    return float(f"{rate:.2g}")


def tokens_per_step(total_tokens: float) -> int:
    """Returns the tokens of a batch: three times the root of all tokens of the run, as a power of two from 2^9 to 2^22.

    The rule gives 4,096 tokens for 2 million tokens, and half a million for 30 billion: the batch that training
    can use grows with what is left to learn, more slowly than the run.

    Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", section 2.2 (the useful batch grows as
    the loss falls); the exponent fits the runs of the documentation.
    """
    return int(2 ** min(22, max(9, round(math.log2(3 * math.sqrt(max(1.0, total_tokens)))))))
