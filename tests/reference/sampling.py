"""The whole sampler, one token at a time and in plain words: what `llm._rust.sample` must do.

Weights are float64 here and float32 there, so a draw within rounding of a border may differ; `Distribution.accepts`
says how near. The uniform number is the same to the last bit.
"""

from collections import Counter
from dataclasses import dataclass, field

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
    """The fields of `llm.SamplingParams`, and the choice index, that sampling reads."""

    seed: int = 0
    choice_index: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
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
    row = mask_logits(logits, vocab_size, pad_id)
    if settings.allowed_token_ids is not None:
        row[[token for token in range(len(row)) if token not in settings.allowed_token_ids]] = -np.inf
    for token, bias in settings.logit_bias.items():
        row[token] += np.float32(bias)
    row = penalize(row, settings, prompt_ids, output_ids)
    if len(output_ids) < settings.min_tokens:
        row[list({*settings.stop_token_ids, *eos_ids})] = -np.inf
    draw = uniform(settings.seed, len(output_ids), settings.choice_index)
    if settings.temperature == 0:
        probabilities = np.zeros(len(row))
        probabilities[int(np.argmax(row))] = 1.0
        return Distribution(probabilities, draw, near_tie=False)
    return _filtered(row, settings, draw)


def _filtered(row: NDArray[np.float32], settings: Settings, draw: float) -> Distribution:
    ranked = sorted(
        (token for token in range(len(row)) if row[token] > -np.inf), key=lambda token: (-row[token], token)
    )
    if settings.top_k > 0:
        ranked = ranked[: settings.top_k]
    scaled = (row.astype(np.float64) - float(row.max())) / settings.temperature
    weights = {token: float(np.exp(scaled[token])) for token in ranked}
    kept, near_tie = _smallest_of_mass(ranked, weights, settings.top_p)
    near_tie |= any(abs(weights[token] - settings.min_p) < 1e-6 for token in kept if settings.min_p > 0)
    kept = [token for token in kept if weights[token] >= settings.min_p]
    kept, is_near = _typical(kept, weights, settings.typical_p)
    probabilities = np.zeros(len(row))
    for token in kept:
        probabilities[token] = weights[token]
    return Distribution(probabilities / probabilities.sum(), draw, near_tie or is_near)


def _typical(tokens: list[int], weights: dict[int, float], mass: float) -> tuple[list[int], bool]:
    """Source: Meister et al. 2022, "Locally typical sampling", equation 6."""
    if mass == 1.0:
        return tokens, False
    total = sum(weights[token] for token in tokens)
    surprise = {token: -np.log(weights[token] / total) for token in tokens if weights[token] > 0}
    entropy = sum(weights[token] / total * surprise[token] for token in surprise)
    distance = {token: abs(surprise[token] - entropy) for token in surprise}
    ranked = sorted(surprise, key=lambda token: (distance[token], token))
    kept, near_tie = _smallest_of_mass(ranked, weights, mass)
    for token in ranked[len(kept) :]:
        near_tie |= abs(distance[token] - distance[kept[-1]]) < 1e-5 and weights[token] != weights[kept[-1]]
    return kept, near_tie


def _smallest_of_mass(ranked: list[int], weights: dict[int, float], share: float) -> tuple[list[int], bool]:
    """The first tokens whose mass is at least `share` of all, and whether rounding could have said another."""
    if share == 1.0:
        return ranked, False
    total = sum(weights[token] for token in ranked)
    kept: list[int] = []
    mass, near_tie = 0.0, False
    for token in ranked:
        if kept and mass >= share * total:
            break
        mass += weights[token]
        kept.append(token)
        near_tie |= abs(mass - share * total) < 1e-5 * total
    return kept, near_tie


@dataclass(frozen=True)
class Score:
    """What a masked row says of one token."""

    logprob: float
    rank: int
    top: list[tuple[int, float]]


def score(logits: NDArray[np.float32], token: int, n: int, *, vocab_size: int, pad_id: int | None = None) -> Score:
    """Log-probability of `token`, its place among all, and the `n` likeliest."""
    masked = mask_logits(logits, vocab_size, pad_id)
    logprobs = log_softmax(masked)
    ranked = sorted(range(len(masked)), key=lambda other: (-masked[other], other))
    top = [(other, float(logprobs[other])) for other in ranked[:n] if masked[other] > -np.inf]
    return Score(float(logprobs[token]), ranked.index(token) + 1, top)
