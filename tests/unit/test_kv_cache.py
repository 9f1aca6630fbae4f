"""The key-value cache in 8 bits: its formats, what they take, and that answers depend on nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm import LLM, SamplingParams
from llm._rust import instruction_sets
from llm.errors import ConfigError, InvalidArgumentError
from llm.inference import EngineConfig, load_engine
from llm.inference.kv_cache import KVCache, check_cache_dtype
from llm.inference.runners.cpu_weights import obstacle
from llm.info import describe
from llm.models.costs import kv_bytes_per_token
from llm.models.layers import cached
from llm.models.layers.attend import AttentionRule
from llm.models.layers.cached import FP8, INT8, keep, keep_keys, restore, restore_keys
from llm.models.layers.paged import Pages, attend_pages
from llm.settings.engine import CacheDtype, NgramSpeculation
from llm.settings.model import ModelConfig
from tests.mixes import BASE, MIXES, build
from tests.unit.inference_samples import GREEDY, PROMPTS, drain_ids
from tests.unit.test_kernels import cpu_model_of, larger, run, run_torch, shuffled_tables, step_of, tokens

CPU = torch.device("cpu")


def heads(seed: int, *shape: int, outliers: float = 1.0) -> Tensor:
    """Random heads; one channel of every third vector is larger than the others, as in keys of trained models."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    drawn.view(-1, shape[-1])[::3, shape[-1] // 2] *= outliers
    return drawn


@given(
    seed=st.integers(0, 2**32),
    width=st.integers(1, 130),
    size=st.sampled_from([1e-38, 1e-20, 1e-3, 1.0, 1e4, 1e34]),
    outliers=st.sampled_from([1.0, 30.0, 1000.0]),
)
@settings(max_examples=60, deadline=None)
def test_integer_heads_are_within_half_a_step(seed: int, width: int, size: float, outliers: float) -> None:
    exact = heads(seed, 5, 2, width, outliers=outliers) * size
    kept = keep(exact, INT8)
    assert kept.shape == (5, 2, width + 2)
    step = exact.double().abs().amax(-1, keepdim=True) / 127 * 1.0079  # rounded up to bf16
    error = (restore(kept, torch.float64) - exact.double()).abs()
    assert (error <= 0.5001 * step.clamp_min(2.0**-126)).all()
    assert torch.equal(keep(exact[3, 1], INT8), kept[3, 1])  # a head by itself


@given(seed=st.integers(0, 2**32), width=st.integers(1, 130))
@settings(max_examples=40, deadline=None)
def test_mixing_multiplies_blocks_with_the_walsh_hadamard_matrix(seed: int, width: int) -> None:
    size, exact = cached.mixed_channels(width), heads(seed, 3, 2, width).double()
    signs = [[1.0 - 2 * ((row & col).bit_count() % 2) for col in range(size)] for row in range(size)]
    wanted = exact.unflatten(-1, (-1, size)) @ torch.tensor(signs, dtype=torch.float64)
    torch.testing.assert_close(cached.mixed(exact.float()).double(), wanted.flatten(-2), atol=1e-5 * size, rtol=0)
    products = (cached.mixed(exact[0].float()) * cached.mixed(exact[1].float())).sum(-1).double() / size
    torch.testing.assert_close(products, (exact[0] * exact[1]).sum(-1), atol=1e-4 * width, rtol=0)


def test_mixed_keys_lose_less_to_a_channel_far_above_the_others() -> None:
    keys = heads(5, 8, 16, 2, 64, outliers=50.0)
    plain = restore(keep(keys, INT8), torch.float32) - keys
    found = restore_keys(keep_keys(keys, INT8), torch.float32) - keys
    assert found.square().mean() <= 0.2 * plain.square().mean()


def test_heads_that_are_not_finite_stay_so() -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        exact = torch.tensor([[1.0, bad, 2.0], [1.0, 0.0, -2.0], [0.0, -0.0, 0.0]])
        found = restore(keep(exact, INT8), torch.float32)
        assert found[0].isnan().all()
        torch.testing.assert_close(found[1:], exact[1:], atol=0.01, rtol=0)


def test_eight_bit_floats_are_as_torch_rounds_them() -> None:
    exact = torch.tensor([[0.0, 1.0, -3.3, 500.0, -1e9, 0.01]])
    wanted = torch.tensor([[0.0, 1.0, -3.25, 448.0, -448.0, 0.009765625]])
    assert torch.equal(restore(keep(exact, FP8), torch.float32), wanted)


@pytest.mark.parametrize("dtype", [INT8, FP8])
def test_the_cache_takes_the_bytes_that_are_planned_for(dtype: torch.dtype) -> None:
    config = msgspec.structs.replace(BASE, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    token_bytes = kv_bytes_per_token(config, dtype)
    assert token_bytes <= 0.53 * kv_bytes_per_token(config, torch.bfloat16)
    cache = KVCache.allocate(config, 7, 4, dtype, CPU)
    assert sum(part.nbytes for part in (*cache.keys, *cache.values)) == 7 * 4 * token_bytes


@pytest.mark.parametrize("outliers", [1.0, 50.0])
@pytest.mark.parametrize("dtype", [INT8, FP8])
def test_attention_stays_within_the_bound_of_the_steps(dtype: torch.dtype, outliers: float) -> None:
    """A score is off by the keys' errors, a weight by the exponential of twice the largest such difference."""
    keys, values = heads(1, 8, 16, 2, 64, outliers=outliers), heads(2, 8, 16, 2, 64, outliers=outliers)
    query = heads(3, 1, 6, 64) / 8
    rule, pages = AttentionRule(scale=0.125), Pages(torch.arange(8)[None].int(), torch.tensor([121], dtype=torch.int32))
    exact = attend_pages(query, keys, values, pages, rule)
    kept = keep_keys(keys, dtype), keep(values, dtype)
    found = attend_pages(query, *kept, pages, rule)
    errors = restore_keys(kept[0], torch.float32) - keys, restore(kept[1], torch.float32) - values
    score = 0.125 * (query.abs().sum(-1).max() * errors[0].abs().max())
    bound = errors[1].abs().max() + (torch.exp(2 * score) - 1) * values.abs().max() + 1e-5
    assert (found - exact).abs().max() <= bound
    if outliers == 1.0:
        assert (found - exact).abs().max() <= 0.03 * exact.abs().max()


COVERED = {
    name: config
    for name, config in MIXES.items()
    if name.endswith((", rope, swiglu, pre", "mha, learned, moe, both"))
    and obstacle(config, torch.float32, CPU) is None
}
SPANS = ([(0, 9), (0, 5)], [(9, 10), (5, 13)], [(10, 11), (13, 14)])


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("name", COVERED)
def test_kernels_equal_pytorch(name: str, isa: str) -> None:
    """Sliding windows, bounded scores, norms of heads and every number of heads per key."""
    config = COVERED[name]
    model = build(config)
    tables = shuffled_tables(2, 16)
    ours, theirs = (KVCache.allocate(config, 8, 4, INT8, CPU) for _ in range(2))
    kernels = cpu_model_of(model, ours, isa=isa)
    for number, spans in enumerate(SPANS):
        ids = tokens(sum(stop - start for start, stop in spans), config.vocab_size, number)
        step = step_of(spans, tables, ids)
        logits = run_torch(model, theirs, step).numpy()
        # A number between two steps may be rounded either way.
        np.testing.assert_allclose(run(kernels, step, config.vocab_size), logits, atol=5e-3, rtol=5e-3)
    for mine, other in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
        found, wanted = restore(mine, torch.float32), restore(other, torch.float32)
        step = wanted.abs().amax(-1, keepdim=True) / 127
        apart = (found - wanted).abs()
        assert (apart <= 1.02 * step).all()
        assert (apart > 0.5 * step).float().mean() <= 0.005


def test_pytorch_reads_its_own_codes_in_chunks_as_in_one_pass() -> None:
    """To rounding: PyTorch's products depend on the number of rows."""
    model, tables = build(BASE), shuffled_tables(1, 16)
    ids = tokens(14, BASE.vocab_size)
    caches = [KVCache.allocate(BASE, 4, 4, INT8, CPU) for _ in range(2)]
    whole = run_torch(model, caches[0], step_of([(0, 14)], tables, ids))
    spans = [(0, 5), (5, 12), (12, 13), (13, 14)]
    parts = [run_torch(model, caches[1], step_of([span], tables, ids[slice(*span)])) for span in spans]
    torch.testing.assert_close(torch.cat(parts), whole, atol=5e-3, rtol=5e-3)


def test_pytorch_answers_with_codes(tiny_checkpoint: Path) -> None:
    """Chunks, preemption and prefix hits through the plain runner; nearly all first tokens are those of the kernels."""
    limits = int8(max_model_len=80, block_size=8, max_batch_tokens=9, kv_cache_memory_bytes=BLOCK_BYTES * 11)
    found = []
    for backend in ("kernels", "torch"):
        engine = load_engine(tiny_checkpoint, config=msgspec.structs.replace(limits, backend=backend))
        ids = [engine.add_request(engine.tokenizer.encode(text), GREEDY) for text in (*PROMPTS, PROMPTS[3])]
        found.append([answer[:2] for answer in drain_ids(engine, ids)])
        assert engine.stats()["prefix_hit_tokens"] > 0
    assert sum(ours == theirs for ours, theirs in zip(*found, strict=True)) >= len(PROMPTS)  # of one more


@pytest.mark.parametrize("isa", instruction_sets())
@given(data=st.data())
@settings(max_examples=4, deadline=None)
def test_a_row_has_the_same_bits_in_every_batch(isa: str, data: st.DataObject) -> None:
    config = larger(data.draw(st.sampled_from(["llama", "odd sizes"])))
    model = build(config)
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=12))
    tables, ids = shuffled_tables(len(lengths), max(lengths)), tokens(sum(lengths), config.vocab_size)
    caches = [KVCache.allocate(config, tables.size, 4, INT8, CPU) for _ in range(2)]
    threads = data.draw(st.integers(1, 3))
    whole = step_of([(0, length) for length in lengths], tables, ids)
    together = run(cpu_model_of(model, caches[0], threads=threads, isa=isa), whole, config.vocab_size)
    row = data.draw(st.integers(0, len(lengths) - 1))
    start = sum(lengths[:row])
    alone = cpu_model_of(model, caches[1], threads=1, isa=isa)
    for position in range(lengths[row]):
        place = start + position
        step = step_of([(position, position + 1)], tables[row : row + 1], ids[place : place + 1])
        assert np.array_equal(run(alone, step, config.vocab_size)[0], together[place])


# What an engine does besides computing: none of it may change a token.
BLOCK_BYTES = 2 * 2 * 2 * (16 + 2) * 8  # two layers' keys and values, two heads of 16 channels, 8 tokens
LIMITS = {
    "one at a time": {"max_running_requests": 1, "enable_prefix_caching": False},
    "token by token": {"max_batch_tokens": 1},
    "chunks": {"max_batch_tokens": 7, "block_size": 4},
    "preempting": {"max_model_len": 80, "block_size": 8, "kv_cache_memory_bytes": BLOCK_BYTES * 11},
    "guesses": {"speculative": NgramSpeculation(num_draft_tokens=3, min_ngram=1)},
}


def int8(**limits: Any) -> EngineConfig:
    return EngineConfig(kv_cache_dtype="int8", **limits)


@pytest.mark.parametrize("name", LIMITS)
def test_answers_do_not_depend_on_what_the_engine_does(tiny_checkpoint: Path, name: str) -> None:
    def answers(config: EngineConfig) -> list[list[int]]:
        engine = load_engine(tiny_checkpoint, config=config)
        prompts = [engine.tokenizer.encode(text) for text in PROMPTS]
        found: list[int] = []
        for prompt in (*prompts, prompts[0]):  # the last one's beginning is in the prefix cache
            found += engine.add_choices(prompt, msgspec.structs.replace(GREEDY, n=2, temperature=0.8, seed=5))
        tokens_of = drain_ids(engine, found)
        stats = engine.stats()
        assert stats["blocks_free"] == stats["blocks_total"]
        assert (stats["num_preemptions"] > 0) == (config.kv_cache_memory_bytes is not None)
        return tokens_of

    wanted = answers(int8())
    assert answers(int8(**LIMITS[name])) == wanted
    assert wanted[:2] == wanted[-2:]


def test_choices_and_repeated_prompts_share_blocks(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint, config=EngineConfig(block_size=8), kv_cache_dtype="int8")
    params = SamplingParams(max_tokens=12, n=3, seed=1, temperature=1.0)
    prompt = PROMPTS[1] * 2
    first = model.generate(prompt, params)
    again = model.generate(prompt, params)
    assert [choice.token_ids for choice in first.choices] == [choice.token_ids for choice in again.choices]
    stats = model.engine.stats()
    assert stats["prefix_hit_tokens"] > 0
    assert stats["blocks_copied"] > 0


def test_the_same_memory_holds_more_tokens(tiny_checkpoint: Path) -> None:
    limits = EngineConfig(kv_cache_memory_bytes=2**20)
    engines = [load_engine(tiny_checkpoint, config=config) for config in (limits, int8(kv_cache_memory_bytes=2**20))]
    full, packed = (engine.stats()["blocks_total"] for engine in engines)
    assert packed == pytest.approx(full * 64 / 18, abs=2)  # a head of 16 channels in fp32
    assert [engine.cache_format for engine in engines] == [("float32", 512), ("int8", 144)]
    assert describe(tiny_checkpoint)["KV cache"].endswith("144 bytes a token as int8")


LATENT = MIXES["latent, rope, swiglu, pre"]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("int8", LATENT, r"`kv_cache_dtype` must be 'auto' for attention 'mla', .* got 'int8'\nhint:"),
        ("fp8", LATENT, r"`kv_cache_dtype` must be 'auto' for attention 'mla'"),
        ("fp8", BASE, r"`kv_cache_dtype` 'fp8' needs a CUDA device, got cpu; here it must be 'auto' or 'int8'\nhint:"),
    ],
)
def test_caches_that_cannot_be_are_refused(name: CacheDtype, config: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_cache_dtype(name, config, CPU)


def test_settings_that_cannot_be_are_refused_before_weights_are_read(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="`kv_cache_dtype` 'fp8' needs a CUDA device, got cpu"):
        LLM(tiny_checkpoint, device="cpu", kv_cache_dtype="fp8")
    with pytest.raises(ConfigError, match=r"`kv_cache_dtype` .*'int7'"):
        LLM(tiny_checkpoint, kv_cache_dtype="int7")


def narrow() -> KVCache:
    return KVCache(tuple(torch.zeros(8, 4, 2, 2, dtype=INT8) for _ in range(3)), ())


def mixed() -> KVCache:
    return KVCache(
        KVCache.allocate(BASE, 8, 4, INT8, CPU).keys, KVCache.allocate(BASE, 8, 4, torch.float32, CPU).values
    )


@pytest.mark.parametrize(("make", "message"), [(narrow, "wider than their scale of 2, got 2"), (mixed, "of one shape")])
def test_tensors_that_hold_no_cache_are_refused(make: Callable[[], KVCache], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        cpu_model_of(build(BASE), make())
