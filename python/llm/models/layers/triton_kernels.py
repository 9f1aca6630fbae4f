"""Triton kernels for the CUDA work between matrix products; each kernel replaces two to eight PyTorch kernels.

`layers.fused` imports this module once it has found Triton and a device; tests import it under Triton's interpreter.
Arguments with names in capitals are compile-time constants.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

import torch
import triton
import triton.language as tl
from torch import Tensor

# Bytes of keys in one tile: shared memory holds several tiles at once.
_TILE_BYTES = 1 << 14
# Fewest programs to launch: about three per multiprocessor of a large GPU.
_PROGRAMS = 400
_MAX_SPLITS = 64


def attend_blocks(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attends from one new token per request to the cached tokens of that request, without synchronizing the device.

    Each context is split into parts that run in parallel, because one request has far fewer key heads than a GPU has
    multiprocessors. A second kernel merges the parts.

    Args:
        query: `[R, H, D]`, the last dimension contiguous.
        keys: `[blocks, block_size, K, D]`.
        values: `[blocks, block_size, K, D]`.
        tables: int32 `[R, M]`: each request's blocks in order.
        lengths: int32 `[R]`: tokens of each request, at least one.
        scale: Factor on the products of queries and keys.
        window: Number of last tokens that a query sees; None means all.
        softcap: Bound `c` of the scores in `c · tanh(s / c)`; None means no bound.

    Returns:
        `[R, H, D]`.

    Source: Dao et al. 2023, «Flash-Decoding»; Kwon et al. 2023, «PagedAttention», section 4.1.
    """
    num_requests, num_heads, width = query.shape
    num_kv_heads, longest = keys.shape[2], tables.shape[1] * keys.shape[1]
    padded = triton.next_power_of_2(width)
    tile, splits = _tile_and_splits(padded * keys.element_size(), num_requests * num_kv_heads, longest)
    parts = torch.empty((num_requests, num_heads, splits, width), dtype=torch.float32, device=query.device)
    weights = torch.empty((num_requests, num_heads, splits), dtype=torch.float32, device=query.device)
    tensors = (query, keys, values, tables, lengths, parts, weights)
    strides = (*query.stride()[:2], *keys.stride()[:3], *values.stride()[:3], tables.stride(0))
    _attend_part[(num_requests * num_kv_heads, splits)](
        *tensors,
        scale,
        longest if window is None else window,
        softcap or 1.0,
        *strides,
        num_kv_heads,
        BLOCK_SIZE=keys.shape[1],
        GROUP=num_heads // num_kv_heads,
        GROUP_PADDED=max(16, triton.next_power_of_2(num_heads // num_kv_heads)),
        WIDTH=width,
        WIDTH_PADDED=padded,
        TILE=tile,
        SPLITS=splits,
        IS_CAPPED=softcap is not None,
    )
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    _join_parts[(num_requests * num_heads,)](parts, weights, output, WIDTH=width, WIDTH_PADDED=padded, SPLITS=splits)
    return output


def _tile_and_splits(row_bytes: int, num_heads: int, longest: int) -> tuple[int, int]:
    """Returns the number of tokens per tile and of parts per context, both powers of two.

    Args:
        row_bytes: Size of one padded key.
        num_heads: Key heads of all requests together.
        longest: Tokens of the longest context that the block tables can hold.
    """
    tile = min(max(_TILE_BYTES // row_bytes, 16), 64)
    wanted = triton.next_power_of_2(triton.cdiv(_PROGRAMS, num_heads))
    return tile, min(wanted, triton.next_power_of_2(triton.cdiv(longest, tile)), _MAX_SPLITS)


@triton.jit
def _attend_part(
    query,
    keys,
    values,
    tables,
    lengths,
    parts,
    weights,
    scale,
    window,
    softcap,
    query_request,
    query_head,
    key_block,
    key_slot,
    key_head,
    value_block,
    value_slot,
    value_head,
    table_request,
    num_kv_heads,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
    IS_CAPPED: tl.constexpr,
):
    """Attends to one part of one request's context for the queries of one key head."""
    request = tl.program_id(0) // num_kv_heads
    kv_head = tl.program_id(0) % num_kv_heads
    split = tl.program_id(1)
    start, stop = _part_bounds(tl.load(lengths + request), window, split, TILE, SPLITS)
    rows = tl.arange(0, GROUP_PADDED)
    dims = tl.arange(0, WIDTH_PADDED)
    heads = kv_head * GROUP + rows
    row_mask = (rows < GROUP)[:, None] & (dims < WIDTH)[None, :]
    asked_at = request.to(tl.int64) * query_request + heads[:, None] * query_head + dims[None, :]
    asked = tl.load(query + asked_at, row_mask, other=0.0)
    highest = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    mixed = tl.zeros([GROUP_PADDED, WIDTH_PADDED], tl.float32)
    for begin in range(start, stop, TILE):
        blocks, slots, is_seen = _cached(tables + request * table_request, begin, stop, TILE, BLOCK_SIZE)
        at = blocks * key_block + slots * key_slot + kv_head * key_head
        key = tl.load(keys + at[None, :] + dims[:, None], is_seen[None, :] & (dims < WIDTH)[:, None], other=0.0)
        scores = _capped(tl.dot(asked, key, input_precision="ieee") * scale, softcap, IS_CAPPED)
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        weight, shrink, highest = _online_softmax(scores, highest)
        total = total * shrink + tl.sum(weight, 1)
        at = blocks * value_block + slots * value_slot + kv_head * value_head
        value = tl.load(values + at[:, None] + dims[None, :], is_seen[:, None] & (dims < WIDTH)[None, :], other=0.0)
        mixed = mixed * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    row = (request * num_kv_heads * GROUP + heads).to(tl.int64) * SPLITS + split
    # A part without tokens has weight 0, which must not be a divisor.
    mean = mixed / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(parts + row[:, None] * WIDTH + dims[None, :], mean, row_mask)
    tl.store(weights + row, highest + tl.log(total), rows < GROUP)


@triton.jit
def _part_bounds(length, window, split, TILE: tl.constexpr, SPLITS: tl.constexpr):
    """Returns the first token of a part and the token after its last one."""
    first = tl.maximum(length - window, 0)
    part = tl.cdiv(tl.cdiv(length - first, SPLITS), TILE) * TILE
    start = first + split * part
    return start, tl.minimum(start + part, length)


@triton.jit
def _cached(table, begin, stop, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Returns the block and slot of each token of a tile, and a mask of the tokens before `stop`."""
    places = begin + tl.arange(0, TILE)
    is_seen = places < stop
    blocks = tl.load(table + places // BLOCK_SIZE, is_seen, other=0).to(tl.int64)
    return blocks, places % BLOCK_SIZE, is_seen


@triton.jit
def _capped(scores, softcap, IS_CAPPED: tl.constexpr):
    """Scores bounded by `c · tanh(s / c)`; tanh is written with a sigmoid, which Triton has."""
    if IS_CAPPED:
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
    return scores


@triton.jit
def _online_softmax(scores, highest):
    """Weights of a tile, the factor that rescales earlier sums, and the new maximum of each row."""
    higher = tl.maximum(highest, tl.max(scores, 1))
    return tl.exp(scores - higher[:, None]), tl.exp(highest - higher), higher


@triton.jit
def _join_parts(parts, weights, output, WIDTH: tl.constexpr, WIDTH_PADDED: tl.constexpr, SPLITS: tl.constexpr):
    """Computes the mean of one head's parts, weighted by their sums of exponentials."""
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, WIDTH_PADDED)
    weight = tl.load(weights + row * SPLITS + splits)
    weight = tl.exp(weight - tl.max(weight, 0))
    is_used = (weight > 0)[:, None] & (dims < WIDTH)[None, :]
    part = tl.load(parts + (row * SPLITS + splits)[:, None] * WIDTH + dims[None, :], is_used, other=0.0)
    mixed = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(output + row * WIDTH + dims, mixed.to(output.dtype.element_ty), dims < WIDTH)


def rotate_into_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
) -> Tensor:
    """Rotates queries and keys, and writes keys and values into their slots of the cache.

    Args:
        query: `[T, H, D]`, the last dimension contiguous, as of `key` and `value`.
        key: `[T, K, D]`.
        value: `[T, K, D]`.
        rotation: Cosines and sines, fp32 `[T, 1, D/2]` each.
        keys: `[blocks, block_size, K, D]`, contiguous, as is `values`.
        values: `[blocks, block_size, K, D]`.
        slots: int64 `[T]`.

    Returns:
        The rotated queries, `[T, H, D]`.
    """
    num_tokens, num_heads, width = query.shape
    num_kv_heads = key.shape[1]
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    _rotate[(num_tokens, num_heads + 2 * num_kv_heads)](
        query,
        key,
        value,
        *rotation,
        keys,
        values,
        slots,
        output,
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        num_heads,
        num_kv_heads,
        HALF=width // 2,
        HALF_PADDED=triton.next_power_of_2(width // 2),
        num_warps=1,
    )
    return output


@triton.jit
def _rotate(
    query,
    key,
    value,
    cosines,
    sines,
    keys,
    values,
    slots,
    output,
    query_token,
    query_head,
    key_token,
    key_head,
    value_token,
    value_head,
    num_heads,
    num_kv_heads,
    HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr,
):
    """Processes one head of one token: a query, a key or a value."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, HALF_PADDED)
    is_inside = dims < HALF
    kv_head = head - num_heads
    source = query + token * query_token + head * query_head
    target = output + (token * num_heads + head) * 2 * HALF
    if head >= num_heads:
        slot = tl.load(slots + token)
        if kv_head < num_kv_heads:
            source = key + token * key_token + kv_head * key_head
            target = keys + (slot * num_kv_heads + kv_head) * 2 * HALF
        else:
            kv_head -= num_kv_heads
            source = value + token * value_token + kv_head * value_head
            target = values + (slot * num_kv_heads + kv_head) * 2 * HALF
    first = tl.load(source + dims, is_inside, other=0.0)
    second = tl.load(source + HALF + dims, is_inside, other=0.0)
    if head < num_heads + num_kv_heads:
        cosine = tl.load(cosines + token * HALF + dims, is_inside, other=0.0)
        sine = tl.load(sines + token * HALF + dims, is_inside, other=0.0)
        turned = first * cosine - second * sine
        second = (second * cosine + first * sine).to(second.dtype)
        first = turned.to(first.dtype)
    tl.store(target + dims, first, is_inside)
    tl.store(target + HALF + dims, second, is_inside)


def add_rms_norm(residual: Tensor, update: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the sum of `residual` and `update` (or only `residual` if `update` is None), and its RMS norm.

    Args:
        residual: `[..., C]`, contiguous, as is `update`.
        update: `[..., C]`.
        weight: `[C]`.
        eps: Number added under the root.

    Source: Zhang and Sennrich 2019, «Root Mean Square Layer Normalization», equation 4.
    """
    width = residual.shape[-1]
    total = residual if update is None else torch.empty_like(residual)
    output = torch.empty_like(residual)
    padded = triton.next_power_of_2(width)
    _add_rms_norm[(residual.numel() // width,)](
        residual,
        residual if update is None else update,
        weight,
        total,
        output,
        eps,
        WIDTH=width,
        WIDTH_PADDED=padded,
        HAS_UPDATE=update is not None,
        num_warps=min(max(padded // 512, 1), 16),
    )
    return total, output


@triton.jit
def _add_rms_norm(
    residual,
    update,
    weight,
    total,
    output,
    eps,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    HAS_UPDATE: tl.constexpr,
):
    """Processes one row."""
    dims = tl.arange(0, WIDTH_PADDED)
    is_inside = dims < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + dims
    row = tl.load(residual + at, is_inside, other=0.0)
    if HAS_UPDATE:
        # Rounded like the returned sum.
        row = (row.to(tl.float32) + tl.load(update + at, is_inside, other=0.0).to(tl.float32)).to(row.dtype)
        tl.store(total + at, row, is_inside)
    row = row.to(tl.float32)
    scale = tl.rsqrt(tl.sum(row * row, 0) / WIDTH + eps)
    row = row * scale * tl.load(weight + dims, is_inside, other=0.0).to(tl.float32)
    tl.store(output + at, row.to(output.dtype.element_ty), is_inside)


def silu_times(gate_up: Tensor) -> Tensor:
    """Returns `silu(gate) * up`, `[T, C]`, of contiguous `[T, 2 C]` with the gate first.

    Source: Shazeer 2020, «GLU Variants Improve Transformer», equation 6.
    """
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(num_tokens, width)
    _silu_times[(num_tokens, triton.cdiv(width, 1024))](gate_up, output, width, TILE=1024)
    return output


@triton.jit
def _silu_times(gate_up, output, width, TILE: tl.constexpr):
    """Processes a tile of one row."""
    token = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_inside = dims < width
    gate = tl.load(gate_up + token * 2 * width + dims, is_inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * width + width + dims, is_inside, other=0.0).to(tl.float32)
    tl.store(output + token * width + dims, (gate * tl.sigmoid(gate) * up).to(output.dtype.element_ty), is_inside)
