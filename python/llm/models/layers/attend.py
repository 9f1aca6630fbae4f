"""Softmax attention with the backend that suits device and shape, never with a mask over a whole long context."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.errors import ConfigError
from llm.models.layers.cpu_training import LONGEST_SHORT, ShortAttention, is_training_on_cpu

# Queries that share one mask; the size of a mask is this number times the number of visible keys.
QUERY_BLOCK = 512


@dataclass(frozen=True)
class AttentionRule:
    """Transformation of attention scores.

    Attributes:
        scale: Factor on the products of queries and keys.
        window: Number of tokens a query sees, including itself; None means all earlier tokens.
        softcap: Bound `c` in `c · tanh(s / c)`; None means no bound.
        dropout: Fraction of weights set to zero.
        sinks: `[H]`: score per head that takes part in the softmax and has no value; None means no such scores.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    sinks: Tensor | None = None


def attend(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], rule: AttentionRule, *, backend: str = "auto"
) -> Tensor:
    """Computes causal attention within each of the sequences that `lengths` defines.

    Args:
        query: `[T, H, D]`.
        key: `[T, K, D]`.
        value: `[T, K, Dv]`.
        lengths: Lengths of the sequences; they sum to `T`.
        rule: Scale, window, cap, dropout.
        backend: A name in `BACKENDS`, or `auto`.

    Returns:
        `[T, H, Dv]`.

    Raises:
        ConfigError: The backend is unknown or cannot run here.
    """
    return BACKENDS[choose_backend(backend, query, rule)](query, key, value, lengths, rule)


def choose_backend(name: str, query: Tensor, rule: AttentionRule) -> str:
    """Returns the backend that `name` selects for these queries.

    Raises:
        ConfigError: The backend is unknown or cannot run here.
    """
    if name == "auto":
        half = query.dtype in (torch.bfloat16, torch.float16) and rule.sinks is None
        return "flash" if query.device.type == "cuda" and half and flash_module() else "sdpa"
    if name not in BACKENDS:
        raise ConfigError(f"`attention_backend` must be one of auto, {', '.join(BACKENDS)}, got {name!r}")
    if name in ("flash", "flex") and rule.sinks is not None:
        raise ConfigError(f"attention backend {name!r} has no attention sinks, which this model needs\nhint: `sdpa`")
    if name == "flash" and flash_module() is None:
        raise ConfigError(
            "attention backend `flash` needs the package flash-attn, which is not installed\nhint: `sdpa`"
        )
    if name == "flash" and query.device.type != "cuda":
        raise ConfigError(f"attention backend `flash` runs on CUDA only, got {query.device.type}\nhint: `sdpa`")
    if name == "flex" and rule.dropout:
        raise ConfigError(f"attention backend `flex` has no dropout, got {rule.dropout}\nhint: `sdpa`")
    return name


def _sdpa(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], rule: AttentionRule) -> Tensor:
    """Uses PyTorch's kernels: one call for sequences of equal length, otherwise one call per sequence.

    For packed documents, a call per sequence takes half the time of padding them and a sixth of one call with a mask
    (1,024 tokens, 14 documents); only below 32 tokens a document would padding be faster, in bf16.
    """
    if len(set(lengths)) == 1:
        batch, length = len(lengths), lengths[0]
        query, key, value = (part.view(batch, length, *part.shape[1:]).transpose(1, 2) for part in (query, key, value))
        return attend_causal(query, key, value, rule).transpose(1, 2).flatten(0, 1)  # (T, H, D)
    cuts = list(lengths)
    parts = zip(torch.split(query, cuts), torch.split(key, cuts), torch.split(value, cuts), strict=True)
    return torch.cat([_sdpa(*part, (len(part[0]),), rule) for part in parts])


def attend_causal(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """Lets the last `T` of `S` tokens attend to all earlier tokens, or to those in the window.

    Args:
        query: `[B, H, T, D]`.
        key: `[B, K, S, D]`.
        value: `[B, K, S, Dv]`.
        rule: Scale, window, cap, dropout.

    Returns:
        `[B, H, T, Dv]`.
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    window = rule.window if rule.window is not None and rule.window < num_keys else None
    if num_queries == num_keys and window is None and rule.softcap is None and rule.sinks is None:
        return _scores_of(query, key, value, None, rule, is_causal=True)
    first = num_keys - num_queries
    parts = []
    for start in range(0, num_queries, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, num_queries)
        begin = 0 if window is None else max(first + start - window + 1, 0)
        keys = slice(begin, first + stop)
        distance = torch.arange(first + start, first + stop, device=query.device)[:, None] - torch.arange(
            begin, first + stop, device=query.device
        )
        mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        parts.append(attend_masked(query[:, :, start:stop], key[:, :, keys], value[:, :, keys], mask, rule))
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def attend_masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: AttentionRule) -> Tensor:
    """Attends where `mask` (broadcast to `[B, H, T, S]`; None: everywhere) is true; shapes as in `attend_causal`.

    For a single query, the heads that share a key head become the queries of that head, which takes 80 % less time in
    bf16 than repeating the key.
    """
    if query.shape[2] == 1 and query.shape[1] != key.shape[1]:
        heads = query.view(query.shape[0], key.shape[1], -1, query.shape[3])  # (B, K, H / K, D)
        return _scores_of(heads, key, value, mask, rule).flatten(1, 2).unsqueeze(2)
    return _scores_of(query, key, value, mask, rule)


def _scores_of(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: AttentionRule, *, is_causal: bool = False
) -> Tensor:
    if mask is not None and (rule.softcap is not None or rule.sinks is not None):
        return _step_by_step(query, key, value, mask, rule)
    if is_causal and not rule.dropout and _is_short(query, key, value):
        mixed: Tensor = ShortAttention.apply(query, key, value, rule.scale)  # type: ignore[no-untyped-call]
        return mixed
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, mask, rule.dropout, is_causal=is_causal, scale=rule.scale, enable_gqa=grouped
    )


def _is_short(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Returns whether `ShortAttention` is the faster way to the gradient."""
    is_half = query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16)
    fits = 1 < query.shape[2] <= LONGEST_SHORT and query.shape[3] == value.shape[3]
    return is_half and fits and query.requires_grad and is_training_on_cpu(query)


def _step_by_step(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rule: AttentionRule) -> Tensor:
    """Attends with bounded scores or sinks, which PyTorch's kernels do not support.

    Source: Gemma Team 2024, "Gemma 2", section 2; Xiao et al. 2023, "Efficient Streaming Language Models with Attention
    Sinks", section 3.3 (a learned score in place of a token).
    """
    sinks, groups = rule.sinks, query.shape[1] // key.shape[1]
    if sinks is not None and query.shape[1] != len(sinks):
        # `attend_masked` made queries of the heads that share a key head.
        sinks = sinks.view(query.shape[1], -1)[:, :, None]  # (K, H / K, 1)
    elif sinks is not None:
        sinks = sinks[:, None, None]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    scores = scores.masked_fill(~mask, float("-inf")).float()
    if sinks is not None:
        scores = torch.cat((scores, sinks.float().expand(*scores.shape[:-1], 1)), dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(query.dtype)
    return F.dropout(weights, rule.dropout) @ value


def _math(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], rule: AttentionRule) -> Tensor:
    """Uses one mask over all tokens, for short contexts and for exported programs with a variable number of tokens."""
    places = torch.arange(query.shape[0], device=query.device)
    distance = places[:, None] - places
    mask = distance >= 0 if rule.window is None else (distance >= 0) & (distance < rule.window)
    if len(lengths) > 1:
        document = _documents(lengths, query.device)
        mask = mask & (document[:, None] == document)
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))  # (1, H, T, D)
    return attend_masked(query, key, value, mask, rule).squeeze(0).transpose(0, 1)


def _documents(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns the index of each token's sequence."""
    counts = torch.tensor(lengths, device=device)
    return torch.repeat_interleave(torch.arange(len(lengths), device=device), counts, output_size=sum(lengths))


def _flex(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], rule: AttentionRule) -> Tensor:
    """Uses FlexAttention over all sequences at once; blocks that no query sees are skipped."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    num_tokens, device = len(query), query.device
    document = _documents(lengths, device)
    window = rule.window or num_tokens

    def sees(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (document[row] == document[column]) & (row >= column) & (row - column < window)

    def capped(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score if rule.softcap is None else rule.softcap * torch.tanh(score / rule.softcap)

    mask = create_block_mask(sees, None, None, num_tokens, num_tokens, device=device)
    parts = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))  # (1, H, T, D)
    run: Any = compiled_flex() if device.type == "cuda" else flex_attention
    mixed: Tensor = run(
        *parts, score_mod=capped, block_mask=mask, scale=rule.scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return mixed.squeeze(0).transpose(0, 1)


@lru_cache(maxsize=1)
def compiled_flex() -> Callable[..., Any]:
    """Returns compiled FlexAttention; compilation happens on the first call."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flash(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], rule: AttentionRule) -> Tensor:
    """Uses FlashAttention 3 or 2, whichever is installed.

    Source: Dao 2023, "FlashAttention-2", and Shah et al. 2024, "FlashAttention-3".
    """
    module = flash_module()
    bounds = F.pad(torch.tensor(lengths, device=query.device).cumsum(0), (1, 0)).to(torch.int32)
    longest = max(lengths)
    options: dict[str, Any] = {"softmax_scale": rule.scale, "causal": True, "softcap": rule.softcap or 0.0}
    options["window_size"] = (-1, -1) if rule.window is None else (rule.window - 1, 0)
    if rule.dropout:
        options["dropout_p"] = rule.dropout
    mixed = module.flash_attn_varlen_func(query, key, value, bounds, bounds, longest, longest, **options)
    output: Tensor = mixed[0] if isinstance(mixed, tuple) else mixed
    return output


@lru_cache(maxsize=1)
def flash_module() -> Any:
    """Returns FlashAttention 3's module, otherwise version 2's, otherwise None."""
    names = ("flash_attn_interface", "flash_attn")
    found = next((name for name in names if importlib.util.find_spec(name) is not None), None)
    return importlib.import_module(found) if found else None


Backend = Callable[[Tensor, Tensor, Tensor, tuple[int, ...], AttentionRule], Tensor]
BACKENDS: dict[str, Backend] = {"sdpa": _sdpa, "math": _math, "flex": _flex, "flash": _flash}
