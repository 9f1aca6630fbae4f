"""The Triton kernels against PyTorch: on a GPU as compiled, elsewhere in Triton's interpreter."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from llm import LLM, SamplingParams
from llm.inference import EngineConfig
from llm.inference.runners.cuda_graph import GraphModelRunner
from llm.inference.runners.torch import TorchModelRunner
from llm.models.layers import fused, triton_kernels
from llm.models.layers.attend import AttentionRule
from llm.models.layers.paged import Pages, _gathered
from llm.models.layers.rotary import rotate
from llm.models.layers.triton_kernels import add_rms_norm, attend_blocks, rotate_into_cache, silu_times

# Takes 10 to 50 seconds; `make check` leaves it out.
pytestmark = pytest.mark.long

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter multiplies matrices of bfloat16 as if they were integers.
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def numbers(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def tables_of(lengths: list[int], block_size: int, width: int, seed: int) -> Tensor:
    """Blocks of a shuffled cache; past a request's length they name one that is not its own."""
    order = np.random.default_rng(seed).permutation(len(lengths) * width)
    return torch.from_numpy(order.reshape(len(lengths), width).astype(np.int32)).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    heads=st.sampled_from([(4, 4), (6, 2), (3, 1), (9, 3)]),
    width=st.sampled_from([16, 24, 64, 256]),
    block_size=st.sampled_from([1, 16, 48]),
    window=st.one_of(st.none(), st.integers(1, 310)),
    softcap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 2**31),
)
def test_attention_over_blocks_is_that_over_gathered_keys(
    lengths: list[int],
    heads: tuple[int, int],
    width: int,
    block_size: int,
    window: int | None,
    softcap: float | None,
    seed: int,
    dtype: torch.dtype,
) -> None:
    tables = tables_of(lengths, block_size, -(-300 // block_size), seed)
    keys, values = (numbers(seed + idx, tables.numel(), block_size, heads[1], width, dtype=dtype) for idx in (1, 2))
    # As in the model: a slice of wider rows.
    query = numbers(seed, len(lengths), heads[0] + 2, width, dtype=dtype)[:, : heads[0]]
    pages = Pages(tables, torch.tensor(lengths, dtype=torch.int32, device=DEVICE))
    rule = AttentionRule(width**-0.5, window, softcap)
    expected = _gathered(query.float(), keys.float(), values.float(), pages, rule)
    found = attend_blocks(query, keys, values, tables, pages.lengths, scale=rule.scale, window=window, softcap=softcap)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@settings(max_examples=15, deadline=None)
@given(
    num_tokens=st.integers(1, 5),
    heads=st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    width=st.sampled_from([2, 12, 64]),
    seed=st.integers(0, 2**31),
)
def test_rotated_keys_and_values_reach_their_slots_and_no_other(
    num_tokens: int, heads: tuple[int, int], width: int, seed: int, dtype: torch.dtype
) -> None:
    parts = numbers(seed, num_tokens, heads[0] + 2 * heads[1], width, dtype=dtype)
    query, key, value = torch.split(parts, [heads[0], heads[1], heads[1]], dim=1)
    angles = numbers(seed + 1, num_tokens, 1, width // 2, dtype=torch.float32)
    rotation = (angles.cos(), angles.sin())
    slots = torch.from_numpy(np.random.default_rng(seed).permutation(40)[:num_tokens]).to(DEVICE)
    caches = [numbers(seed + idx, 10, 4, heads[1], width, dtype=dtype) for idx in (2, 3)]
    expected = [cache.clone() for cache in caches]
    expected[0].flatten(0, 1).index_copy_(0, slots, rotate(key, rotation))
    expected[1].flatten(0, 1).index_copy_(0, slots, value)
    found = rotate_into_cache(query, key, value, rotation, keys=caches[0], values=caches[1], slots=slots)
    # A fused multiplication and addition rounds once.
    tolerance = TOLERANCES[dtype]
    for one, other in zip([found, *caches], [rotate(query, rotation), *expected], strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@settings(max_examples=15, deadline=None)
@given(num_tokens=st.integers(1, 4), width=st.integers(1, 1500), seed=st.integers(0, 2**31))
def test_sums_norms_and_gates_are_those_of_pytorch(num_tokens: int, width: int, seed: int, dtype: torch.dtype) -> None:
    residual, update = (numbers(seed + idx, num_tokens, width, dtype=dtype) for idx in (0, 1))
    weight = numbers(seed + 2, width, dtype=dtype)
    total, normed = add_rms_norm(residual, update, weight, 1e-5)
    torch.testing.assert_close(total, residual + update, atol=0, rtol=0)
    tolerance = TOLERANCES[dtype]
    expected = F.rms_norm(total.float(), (width,), weight.float(), 1e-5)
    torch.testing.assert_close(normed.float(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(add_rms_norm(total, None, weight, 1e-5)[1], normed, atol=0, rtol=0)
    gate_up = numbers(seed + 3, num_tokens, 2 * width, dtype=dtype)
    gate, up = gate_up.float().chunk(2, dim=-1)
    torch.testing.assert_close(silu_times(gate_up).float(), F.silu(gate) * up, atol=tolerance, rtol=tolerance)


def test_a_model_of_kernels_answers_as_one_without(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(backend="torch", max_running_requests=3, enable_cuda_graphs=False)
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=0)
    prompts = ["To be", "ROMEO:\nWhat news?"]
    llm = LLM(tiny_checkpoint, "float32", device=DEVICE, config=config)
    runner = llm.engine.runner
    assert isinstance(runner, TorchModelRunner)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "is_fused", lambda values: False)
        expected = llm.generate(prompts, params)
    names: list[str] = []

    def kernels() -> object:
        names.append("used")
        return triton_kernels

    monkeypatch.setattr(fused, "is_fused", lambda values: True)
    monkeypatch.setattr(fused, "kernels", kernels)
    graphs = GraphModelRunner(runner.model, runner.cache, max_requests=3, max_model_len=128)
    llm.engine.runner = graphs
    for one, other in zip(llm.generate(prompts, params), expected, strict=True):
        assert one.token_ids == other.token_ids
        found, wanted = ([token.logprob for token in answer.logprobs or ()] for answer in (one, other))
        assert found == pytest.approx(wanted, abs=1e-4)
    # Of two layers: five norms and two gates in any pass, and twice rotation and attention while decoding.
    assert graphs.num_replays >= 5
    assert len(names) >= 11 * graphs.num_replays
