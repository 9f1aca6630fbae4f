"""Decode steps as graphs see them: lengths on the device, batches filled up, the same arrays each time."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm import SamplingParams
from llm.inference import EngineConfig, load_engine
from llm.inference.engine import Engine
from llm.inference.runners.cuda_graph import GraphModelRunner, graph_obstacle, graph_sizes
from llm.inference.runners.torch import TorchModelRunner
from llm.models import ForwardContext, PagedCache, Pages
from llm.models.layers.attend import AttentionRule
from llm.models.layers.attention import attend_paged
from llm.models.layers.paged import attend_pages
from tests.mixes import BASE, MIXES


def caches(seed: int, num_blocks: int, block_size: int, heads: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(num_blocks, block_size, heads, width, generator=generator) for _ in range(2))
    return keys, values


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    heads=st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    window=st.one_of(st.none(), st.integers(1, 80)),
    softcap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 2**31),
)
def test_lengths_on_the_device_give_the_same_attention(
    lengths: list[int], heads: tuple[int, int], window: int | None, softcap: float | None, seed: int
) -> None:
    num_requests, block_size, width = len(lengths), 16, 8
    num_blocks = 5 * num_requests + 3
    keys, values = caches(seed, num_blocks, block_size, heads[1], width)
    tables = torch.zeros(num_requests, 5, dtype=torch.int32)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(num_blocks).astype(np.int32))
    for request, length in enumerate(lengths):
        used = -(-length // block_size)
        tables[request, :used] = order[5 * request : 5 * request + used]
    query = torch.randn(num_requests, heads[0], width, generator=torch.Generator().manual_seed(seed + 1))
    rule = AttentionRule(width**-0.5, window, softcap)
    cache = PagedCache([keys], [values], torch.zeros(num_requests, dtype=torch.int64), tables)
    context = ForwardContext((1,) * num_requests, tuple(lengths), cache=cache)
    expected = attend_paged(query, context, cache, 0, rule)
    pages = Pages(tables, torch.tensor(lengths, dtype=torch.int32))
    torch.testing.assert_close(attend_pages(query, keys, values, pages, rule), expected, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 2000))
def test_sizes_reach_the_largest_batch_in_small_strides(max_requests: int) -> None:
    sizes = graph_sizes(max_requests)
    assert sizes[-1] == max_requests
    assert all(small < large <= max(2 * small, small + 4, small + small // 8) for small, large in pairwise(sizes))
    assert len(sizes) < 50


def test_what_cannot_be_captured_is_named() -> None:
    assert graph_obstacle(BASE) is None
    assert graph_obstacle(MIXES["latent, rope, swiglu, pre"]) == "attention 'mla'"
    assert graph_obstacle(MIXES["mha, rope, moe, pre"]) == "experts: the host must know their loads"


def engine_with(path: Path, runner: type[TorchModelRunner], config: EngineConfig) -> Engine:
    engine = load_engine(path, dtype="float32", config=config)
    plain = engine.runner
    assert isinstance(plain, TorchModelRunner)
    if runner is GraphModelRunner:
        longest = engine.max_model_len
        engine.runner = GraphModelRunner(plain.model, plain.cache, max_requests=5, max_model_len=longest)
    return engine


def answers(engine: Engine, params: list[SamplingParams]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for length, one in enumerate(params, start=1):
        for request_id in engine.add_choices(list(range(3 * length, 3 * length + 7 * length)), one):
            found[request_id] = []
    while engine.has_unfinished():
        for request_id, delta in engine.step():
            assert not isinstance(delta, Exception), delta
            found[request_id].extend(delta.token_ids)
    return found


@pytest.mark.parametrize("num_blocks", [None, 8])
def test_filled_up_batches_answer_as_exact_ones(tiny_checkpoint: Path, num_blocks: int | None) -> None:
    params = [
        SamplingParams(temperature=temperature, seed=seed, max_tokens=9 + 4 * seed, n=n, ignore_eos=True)
        for seed, (temperature, n) in enumerate([(0.0, 1), (1.0, 2), (0.0, 1), (0.8, 1)])
    ]
    config = EngineConfig(backend="torch", max_running_requests=5, max_model_len=96)
    if num_blocks is not None:
        block_bytes = block_bytes_of(tiny_checkpoint, config)
        config = EngineConfig(
            backend="torch", max_running_requests=5, max_model_len=96, kv_cache_memory_bytes=num_blocks * block_bytes
        )
    exact = engine_with(tiny_checkpoint, TorchModelRunner, config)
    filled = engine_with(tiny_checkpoint, GraphModelRunner, config)
    assert answers(filled, params) == answers(exact, params)
    runner = filled.runner
    assert isinstance(runner, GraphModelRunner)
    assert runner.sizes == [1, 2, 4, 5]
    assert runner.num_replays > 15
    assert (filled.stats()["num_preemptions"] > 0) == (num_blocks is not None)


def block_bytes_of(path: Path, config: EngineConfig) -> int:
    runner = load_engine(path, dtype="float32", config=config).runner
    assert isinstance(runner, TorchModelRunner)
    return sum(part[0].numel() * part.element_size() for part in (*runner.cache.keys, *runner.cache.values))
