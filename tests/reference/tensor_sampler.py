"""A second sampler, written as tensor operations on any device: an independent twin of `llm._rust.sample`.

Both apply the same steps in the same order, break ties alike and draw the same random numbers. The twin computes its
exponentials on the device, so a draw within rounding of a boundary may differ from Rust's.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from llm import _rust
from llm.errors import InvalidArgumentError
from llm.settings.sampling import SamplingParams

# With top-k up to this in every row, only the k likeliest of each are sorted.
_SMALL_K = 1024


@dataclass(frozen=True, kw_only=True)
class SamplingRow:
    """One request on its way.

    Attributes:
        params: How to sample; its seed must be set.
        prompt_ids: Its prompt.
        output_ids: What it generated so far.
        choice_index: Another stream of random numbers of the same seed.
    """

    params: SamplingParams
    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()
    choice_index: int = 0


@dataclass(frozen=True)
class SampledBatch:
    """A token a row.

    Attributes:
        token_ids: (B,) int64; of no meaning where `is_finite` is false.
        is_finite: (B,) whether a row could be sampled: no NaN, no +inf and something above -inf, before and after
            bias, masks and penalties.
        logprobs: (B,) of the raw masked logits; `None` if no row asked.
        ranks: (B,) 1 for the likeliest, of equals the lower id first; `None` if no row asked.
        top_ids: (B, n) the likeliest, n the most that any row asked for; `None` if none did.
        top_logprobs: (B, n) theirs.
    """

    token_ids: Tensor
    is_finite: Tensor
    logprobs: Tensor | None = None
    ranks: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None


class Sampler:
    """Samples rows of logits where they are.

    Args:
        vocab_size: Number of ids the tokenizer has; columns past it are never drawn.
        pad_id: Never drawn, unless it is also an end id.
        eos_ids: Ids that end generation.
    """

    def __init__(self, vocab_size: int, pad_id: int | None = None, eos_ids: Sequence[int] = ()) -> None:
        self.vocab_size = vocab_size
        self.pad_id = None if pad_id in eos_ids else pad_id
        self.eos_ids = tuple(eos_ids)

    def __call__(self, logits: Tensor, rows: Sequence[SamplingRow]) -> SampledBatch:
        """Draws one token for each row.

        Args:
            logits: (B, V) of any float dtype and device; left as they are.
            rows: One for each row of `logits`.

        Raises:
            InvalidArgumentError: Another number of rows, or a row without a seed.
        """
        if logits.ndim != 2 or len(rows) != len(logits):
            raise InvalidArgumentError(
                f"`logits` must be (B, V) with one row for each of {len(rows)} requests, got {tuple(logits.shape)}"
            )
        raw = self._masked(logits)
        scores = self._adjusted(raw.clone(), rows)
        is_finite = _is_finite(raw) & _is_finite(scores)
        greedy = scores.argmax(-1)
        if all(_is_greedy(row.params) for row in rows):
            token_ids = greedy
        else:
            is_greedy = _column(rows, _is_greedy, scores, torch.bool)
            token_ids = torch.where(is_greedy, greedy, _draw(scores, rows))
        return SampledBatch(token_ids, is_finite, *_logprobs(raw, token_ids, rows))

    def _masked(self, logits: Tensor) -> Tensor:
        raw = logits.float().clone()
        raw[:, self.vocab_size :] = -torch.inf
        if self.pad_id is not None:
            raw[:, self.pad_id] = -torch.inf
        return raw

    def _adjusted(self, scores: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Allowed ids, bias, penalties, then end and stop ids before `min_tokens`; changes `scores` in place."""
        restricted = [index for index, row in enumerate(rows) if row.params.allowed_token_ids is not None]
        if restricted:
            at = _places(scores, ((index, rows[index].params.allowed_token_ids or ()) for index in restricted))
            kept = scores[at]
            scores[restricted] = -torch.inf
            scores[at] = kept
        biases = [row.params.logit_bias for row in rows]
        if any(biases):
            values = list(chain.from_iterable(bias.values() for bias in biases))
            at = _places(scores, enumerate(biases))
            scores[at] += torch.tensor(values, dtype=scores.dtype, device=scores.device)
        _penalize(scores, rows)
        banned = [self._banned_ids(row) for row in rows]
        if any(banned):
            scores[_places(scores, enumerate(banned))] = -torch.inf
        return scores

    def _banned_ids(self, row: SamplingRow) -> tuple[int, ...]:
        params = row.params
        if len(row.output_ids) >= params.min_tokens:
            return ()
        return (*params.stop_token_ids, *(() if params.ignore_eos else self.eos_ids))


def _is_greedy(params: SamplingParams) -> bool:
    # A temperature that is 0 in fp32 counts: nothing can be divided by it.
    return float(torch.tensor(params.temperature, dtype=torch.float32)) == 0.0


def _is_finite(scores: Tensor) -> Tensor:
    # The maximum is NaN where there is one.
    return scores.amax(-1).isfinite()


def _column(
    rows: Sequence[SamplingRow],
    read: Callable[[SamplingParams], float],
    scores: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """One value a row (B,), where the scores are."""
    return torch.tensor([read(row.params) for row in rows], dtype=dtype, device=scores.device)


def _places(scores: Tensor, ids_of_row: Iterable[tuple[int, Iterable[int]]]) -> tuple[Tensor, Tensor]:
    """Row and column of every id named."""
    pairs = [(row, token_id) for row, token_ids in ids_of_row for token_id in token_ids]
    index = torch.tensor(pairs, dtype=torch.int64, device=scores.device).view(-1, 2)
    return index[:, 0], index[:, 1]


def _penalize(scores: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Repetition (sign-aware), then frequency and presence, on the tokens seen alone."""
    cells: list[tuple[float, ...]] = []
    for index, row in enumerate(rows):
        params = row.params
        if (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0):
            continue
        counts = Counter(row.output_ids)
        for token_id in {*row.prompt_ids, *row.output_ids}:
            count = counts[token_id]
            taken = params.frequency_penalty * count + params.presence_penalty * (count > 0)
            cells.append((index, token_id, params.repetition_penalty, taken))
    if not cells:
        return
    table = torch.tensor(cells, dtype=torch.float64, device=scores.device)
    at = (table[:, 0].long(), table[:, 1].long())
    repetition, subtracted = table[:, 2].float(), table[:, 3].float()
    seen = scores[at]
    scores[at] = torch.where(seen > 0, seen / repetition, seen * repetition) - subtracted


def _draw(scores: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Temperature, top-k, top-p, min-p and typical-p, then the token at each row's uniform number (B,)."""
    best = scores.amax(-1, keepdim=True)
    candidates, ids = _candidates(scores, rows)  # (B, N), ids ascending
    # Greedy rows are drawn too, and not used: their division must not be by zero.
    inverse = _column(rows, lambda params: params.temperature or 1.0, scores).reciprocal().clamp(max=3.4e38)
    scaled = (candidates - best).double() * inverse[:, None]
    # In float32 as Rust has them, so that the same weights are nothing.
    weights = scaled.float().exp().double() * (scaled >= -87.0)
    weights = weights * _in_top_p(candidates, weights, rows)
    weights = weights * (weights >= _column(rows, lambda params: params.min_p, scores)[:, None])
    weights = weights * _is_typical(scaled, weights, rows)
    cumulative = weights.cumsum(-1)
    uniforms = [_uniform(row) for row in rows]
    target = torch.tensor(uniforms, dtype=torch.float64, device=scores.device) * cumulative[:, -1]
    place = torch.searchsorted(cumulative, target[:, None], right=True).clamp(max=candidates.shape[1] - 1)
    # Rounding may lead past the last token that weighs anything.
    positions = torch.arange(candidates.shape[1], device=scores.device)
    last = torch.where(weights > 0, positions, 0).amax(-1, keepdim=True)
    place = torch.minimum(place, last)
    return place[:, 0] if ids is None else ids.gather(1, place)[:, 0]


def _uniform(row: SamplingRow) -> float:
    if row.params.seed is None:
        raise InvalidArgumentError("every row must have a seed, got none\nhint: `msgspec.structs.replace(…, seed=…)`")
    return _rust.philox_uniform(row.params.seed, len(row.output_ids), choice_index=row.choice_index)


def _candidates(scores: Tensor, rows: Sequence[SamplingRow]) -> tuple[Tensor, Tensor | None]:
    """Each row's k likeliest (B, N), all others at -inf, and their ids; `None` stands for all ids in order."""
    width = scores.shape[1]
    limits = [min(row.params.top_k or width, width) for row in rows]
    if max(limits) <= _SMALL_K:
        ids = _likeliest(scores, limits)
        return scores.gather(1, ids.clamp(max=width - 1)).masked_fill(ids == width, -torch.inf), ids
    if min(limits) == width:
        return scores, None
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places = torch.empty_like(order).scatter_(1, order, torch.arange(width, device=scores.device).expand_as(order))
    limit = torch.tensor(limits, device=scores.device)
    return scores.masked_fill(places >= limit[:, None], -torch.inf), None


def _likeliest(scores: Tensor, limits: Sequence[int]) -> Tensor:
    """Ids of each row's `limits` highest scores (B, N), ascending; of equals the lower ids; filled up with V."""
    width, most = scores.shape[1], max(limits)
    limit = torch.tensor(limits, device=scores.device)[:, None]
    border = scores.topk(most).values.gather(1, limit - 1)
    is_above, is_equal = scores > border, scores == border
    num_equal = limit - is_above.sum(-1, keepdim=True)
    kept = is_above | (is_equal & (is_equal.cumsum(-1) <= num_equal))
    ids = torch.arange(width, device=scores.device).expand_as(scores)
    return torch.where(kept, ids, width).topk(most, largest=False, sorted=True).values


def _in_top_p(candidates: Tensor, weights: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    if all(row.params.top_p == 1.0 for row in rows):
        return torch.ones_like(weights)
    order = candidates.argsort(dim=-1, descending=True, stable=True)
    return _of_mass(order, weights, _column(rows, lambda params: params.top_p, weights))


def _is_typical(scaled: Tensor, weights: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Source: Meister et al. 2022, "Locally typical sampling", equation 6."""
    if all(row.params.typical_p == 1.0 for row in rows):
        return torch.ones_like(weights)
    total = weights.sum(-1, keepdim=True)
    surprise = torch.where(weights > 0, -scaled, 0.0)
    entropy = (weights * surprise).sum(-1, keepdim=True) / total
    distance = torch.where(weights > 0, (surprise - entropy).abs(), torch.inf)
    order = distance.argsort(dim=-1, stable=True)
    return _of_mass(order, weights, _column(rows, lambda params: params.typical_p, weights))


def _of_mass(order: Tensor, weights: Tensor, share: Tensor) -> Tensor:
    """Which are among the first in `order` whose mass reaches `share` of all (B, N), as 0 and 1; 1 keeps all."""
    ranked = weights.gather(1, order)
    cumulative = ranked.cumsum(-1)
    before = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative[:, :-1]], dim=-1)
    kept = (before < share[:, None] * cumulative[:, -1:]) | (share[:, None] == 1.0)
    return torch.zeros_like(weights).scatter_(1, order, kept.to(weights.dtype))


def _logprobs(
    raw: Tensor, token_ids: Tensor, rows: Sequence[SamplingRow]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Log-probabilities and ranks of the tokens, then ids and log-probabilities of the likeliest."""
    asked = [row.params.logprobs for row in rows if row.params.logprobs is not None]
    if not asked:
        return None, None, None, None
    normalizer = raw.logsumexp(-1, keepdim=True)
    chosen = raw.gather(1, token_ids[:, None])
    columns = torch.arange(raw.shape[1], device=raw.device)
    is_before = (raw > chosen) | ((raw == chosen) & (columns < token_ids[:, None]))
    ranks = is_before.sum(-1) + 1
    logprobs = (chosen - normalizer)[:, 0]
    num_top = min(max(asked), raw.shape[1])
    if num_top == 0:
        return logprobs, ranks, None, None
    ids = _likeliest(raw, [num_top] * len(rows))
    values = raw.gather(1, ids)
    order = values.argsort(dim=-1, descending=True, stable=True)
    return logprobs, ranks, ids.gather(1, order), values.gather(1, order) - normalizer
