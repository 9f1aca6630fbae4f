"""The whole sampler, one token at a time and in plain words: what `llm._rust.sample` must do.

Weights are float64 here and float32 there, so a draw within rounding of a border may differ; `Distribution.accepts`
says how near. The uniform number is the same to the last bit.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MASK_32 = 2**32 - 1
MASK_64 = 2**64 - 1


def philox4x32_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK_32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK_32
        k0, k1 = (k0 + 0x9E3779B9) & MASK_32, (k1 + 0xBB67AE85) & MASK_32
    return c0, c1, c2, c3


def stream_key(seed: int, choice_index: int) -> int:
    """The seed for choice 0, else that output of SplitMix64 started at the seed."""
    if choice_index == 0:
        return seed
    z = (seed + choice_index * 0x9E3779B97F4A7C15) & MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
    return z ^ (z >> 31)


def uniform(seed: int, output_idx: int, choice_index: int = 0, draw_idx: int = 0) -> float:
    """53 random bits of the request's stream as a number in [0, 1)."""
    key = stream_key(seed, choice_index)
    counter = (output_idx & MASK_32, output_idx >> 32, draw_idx, 0)
    low, high, _, _ = philox4x32_10(counter, (key & MASK_32, key >> 32))
    return ((high << 32 | low) >> 11) / 2**53


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keyword arguments of `llm._rust.RequestParams` that sampling reads."""

    seed: int = 0
    choice_index: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Distribution:
    """What a row ends as: a probability for each id, and the uniform number that picks one."""

    probabilities: NDArray[np.float64]  # (V,)
    uniform: float
    near_tie: bool  # a filter's border lies within rounding of a candidate

    @property
    def token(self) -> int:
        """The first id, ascending, at which the cumulative probability passes the uniform number."""
        cumulative = np.cumsum(self.probabilities)
        return int(np.argmax(cumulative > self.uniform * cumulative[-1]))

    def accepts(self, token: int, tolerance: float = 1e-5) -> bool:
        """Whether `token` is the one drawn, or lies within rounding of it."""
        if self.near_tie or token == self.token:
            return True
        below = float(self.probabilities[:token].sum())
        return below - tolerance <= self.uniform <= below + self.probabilities[token] + tolerance


def mask_logits(logits: NDArray[np.float32], vocab_size: int, pad_id: int | None) -> NDArray[np.float32]:
    """The row with what can never be a token at -inf."""
    masked = logits.astype(np.float32, copy=True)
    masked[vocab_size:] = -np.inf
    if pad_id is not None:
        masked[pad_id] = -np.inf
    return masked


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities of a masked row."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max()
    return shifted - np.log(np.exp(shifted).sum())


def penalize(
    logits: NDArray[np.float32], settings: Settings, prompt_ids: list[int], output_ids: list[int]
) -> NDArray[np.float32]:
    """Repetition (CTRL), then frequency and presence (OpenAI), all in float32."""
    row = logits.copy()
    repetition = np.float32(settings.repetition_penalty)
    for token in {*prompt_ids, *output_ids}:
        row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
    for token, count in Counter(output_ids).items():
        row[token] -= np.float32(settings.frequency_penalty) * np.float32(count) + np.float32(settings.presence_penalty)
    return row


def distribution(
    logits: NDArray[np.float32],
    settings: Settings,
    prompt_ids: list[int],
    output_ids: list[int],
    *,
    vocab_size: int,
    pad_id: int | None = None,
    eos_ids: tuple[int, ...] = (),
) -> Distribution:
    """The distribution of the token after `prompt_ids` and `output_ids`."""
    row = penalize(mask_logits(logits, vocab_size, pad_id), settings, prompt_ids, output_ids)
    if len(output_ids) < settings.min_tokens:
        row[list({*settings.stop_token_ids, *eos_ids})] = -np.inf
    draw = uniform(settings.seed, len(output_ids), settings.choice_index)
    if settings.temperature == 0:
        probabilities = np.zeros(len(row))
        probabilities[int(np.argmax(row))] = 1.0
        return Distribution(probabilities, draw, near_tie=False)
    scaled = ((row - row.max()) / np.float32(settings.temperature)).astype(np.float64)
    return _filtered(scaled, settings, draw)


def _filtered(scaled: NDArray[np.float64], settings: Settings, draw: float) -> Distribution:
    ranked = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    if settings.top_k > 0:
        ranked = ranked[: settings.top_k]
    weights = {token: float(np.exp(scaled[token])) for token in ranked}
    total = sum(weights.values())
    kept, mass, near_tie = [], 0.0, False
    for token in ranked:
        if settings.top_p < 1.0 and kept and mass >= settings.top_p * total:
            break
        mass += weights[token]
        kept.append(token)
        near_tie |= settings.top_p < 1.0 and abs(mass - settings.top_p * total) < 1e-5 * total
    near_tie |= any(abs(weights[token] - settings.min_p) < 1e-6 for token in kept if settings.min_p > 0)
    kept = [token for token in kept if weights[token] >= settings.min_p]
    probabilities = np.zeros(len(scaled))
    for token in kept:
        probabilities[token] = weights[token]
    return Distribution(probabilities / probabilities.sum(), draw, near_tie)
