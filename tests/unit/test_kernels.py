"""The CPU kernels beside PyTorch's forward pass: every mix of components, both formats, every instruction set."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from llm._rust import CpuModel, instruction_sets
from llm.errors import ConfigError, InvalidArgumentError
from llm.inference import EngineConfig, load_engine
from llm.inference.kv_cache import KVCache
from llm.inference.runners.base import Step
from llm.inference.runners.cpu_weights import kernel_weights, obstacle
from llm.info import describe
from llm.models import DecoderModel, ForwardContext, PagedCache
from llm.settings.engine import Backend
from llm.settings.model import ExpertsConfig, ModelConfig, RopeScaling
from tests.mixes import BASE, MIXES, build

CPU = torch.device("cpu")
BLOCK_SIZE = 4
COVERED = {name: config for name, config in MIXES.items() if obstacle(config, torch.float32, CPU) is None}


def step_of(spans: Sequence[tuple[int, int]], tables: NDArray[np.int32], token_ids: NDArray[np.int64]) -> Step:
    """One request a span of positions; logits of every token."""
    return replace(Step.of(spans, tables, token_ids, BLOCK_SIZE), logits_indices=np.arange(len(token_ids)))


def caches(config: ModelConfig, dtype: torch.dtype, num_blocks: int) -> KVCache:
    return KVCache.allocate(config, num_blocks, BLOCK_SIZE, dtype, CPU)


def cpu_model_of(model: DecoderModel, cache: KVCache, *, threads: int = 2, isa: str | None = None) -> CpuModel:
    weights = kernel_weights(model)
    return CpuModel(weights, list(cache.keys), list(cache.values), num_threads=threads, instruction_set=isa)


def run(model: CpuModel, step: Step, vocab_size: int) -> NDArray[np.float32]:
    logits = np.full((len(step.logits_indices), vocab_size), np.nan, dtype=np.float32)
    model.run(
        step.token_ids,
        step.positions,
        step.slot_mapping,
        step.query_start,
        step.block_tables,
        step.logits_indices,
        logits,
    )
    return logits


@torch.inference_mode()
def run_torch(model: DecoderModel, cache: KVCache, step: Step) -> Tensor:
    paged = PagedCache(
        cache.keys, cache.values, torch.from_numpy(step.slot_mapping), torch.from_numpy(step.block_tables)
    )
    lengths = tuple(np.diff(step.query_start).tolist())
    context = ForwardContext(lengths, tuple(step.seq_lens.tolist()), torch.from_numpy(step.logits_indices), paged)
    logits: Tensor = model(torch.from_numpy(step.token_ids), torch.from_numpy(step.positions), context)
    return logits.float()


def shuffled_tables(num_requests: int, length: int, seed: int = 5) -> NDArray[np.int32]:
    per_request = -(-length // BLOCK_SIZE)
    blocks = np.random.default_rng(seed).permutation(num_requests * per_request)
    return blocks.reshape(num_requests, per_request).astype(np.int32)


def tokens(count: int, vocab_size: int, seed: int = 7) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, vocab_size, count)


# A prompt beside a prompt, then one beside a decoding request, then two that decode.
SPANS = ([(0, 9), (0, 5)], [(9, 10), (5, 13)], [(10, 11), (13, 14)])


@pytest.mark.parametrize("name", COVERED)
def test_every_mix_of_components_equals_pytorch(name: str) -> None:
    check_against_torch(COVERED[name])


def check_against_torch(config: ModelConfig) -> None:
    model = build(config)
    tables = shuffled_tables(2, 16)
    ours, theirs = caches(config, torch.float32, 8), caches(config, torch.float32, 8)
    kernels = cpu_model_of(model, ours)
    for number, spans in enumerate(SPANS):
        count = sum(stop - start for start, stop in spans)
        step = step_of(spans, tables, tokens(count, config.vocab_size, number))
        wanted = run_torch(model, theirs, step).numpy()
        np.testing.assert_allclose(run(kernels, step, config.vocab_size), wanted, atol=2e-5, rtol=2e-5)
    for mine, other in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=2e-5)


EXPERTS = ExpertsConfig(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)
GROUPS = {"n_group": 3, "topk_group": 2}
SIGMOIDS = GROUPS | {"sigmoid_scores": True, "score_correction": True, "routed_scaling_factor": 1.5}
SOME_WINDOWS = {
    "sliding_window": 4,
    "layer_types": ("sliding_attention", "full_attention", "sliding_attention"),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "norms inside the sum": {"norm_placement": "inside", "qk_norm": True, "qk_norm_type": "whole"},
    "norms of heads with an offset": {"norm": "offset_rms_norm", "qk_norm": True, "qk_norm_type": "offset"},
    "a residual factor, norms on both sides": {"norm_placement": "both", "residual_multiplier": 0.3},
    "factors": {"residual_multiplier": 0.3, "logit_scale": 0.2, "embedding_multiplier": 5.0},
    "side by side": {"parallel_block": True, "norm": "layer_norm_no_bias", "logit_scale": 0.5},
    "side by side with a factor": {"parallel_block": True, "residual_multiplier": 0.5, "mlp": "gelu"},
    "some layers without positions": SOME_WINDOWS | {"unrotated_layers": (1,)},
    "two bases": SOME_WINDOWS | {"rope_local_base_freq": 20.0},
    "a rotated part": {"partial_rotary_factor": 0.5, "head_dim": 12},
    "growing queries": {
        "rope_scaling": RopeScaling(
            rope_type="yarn", factor=2, original_max_position_embeddings=4, llama_4_scaling_beta=0.4
        )
    },
    "sinks": SOME_WINDOWS | {"attention_sinks": True},
    "bounded experts with biases": {
        "mlp": "moe",
        "experts": msgspec.structs.replace(EXPERTS, bias=True, swiglu_limit=0.2, softmax_first=False),
    },
    "experts in groups": {"mlp": "moe", "experts": msgspec.structs.replace(EXPERTS, **GROUPS)},
    "sigmoids": {
        "mlp": "moe",
        "experts": msgspec.structs.replace(EXPERTS, **SIGMOIDS, shared_expert_intermediate_size=20),
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_a_component_equals_pytorch(name: str) -> None:
    config = msgspec.structs.replace(BASE, **VARIANTS[name])
    assert obstacle(config, torch.float32, CPU) is None
    check_against_torch(config)


LARGER: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 3, "num_attention_heads": 9, "head_dim": 64},
    "odd sizes": {"hidden_size": 200, "intermediate_size": 331, "head_dim": 22, "vocab_size": 1003},
    "several chunks of columns": {
        "hidden_size": 650,
        "intermediate_size": 2631,
        "head_dim": 16,
        "num_hidden_layers": 1,
    },
    "wide experts": {
        "mlp": "moe",
        "experts": ExpertsConfig(
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=80,
            shared_expert_intermediate_size=72,
            shared_expert_gate=True,
            norm_topk_prob=False,
            routed_scaling_factor=1.5,
        ),
    },
    "tanh gelu, layer norms": {
        "mlp": "gelu",
        "hidden_act": "gelu_pytorch_tanh",
        "norm": "layer_norm",
        "position_encoding": "learned",
        "mlp_bias": True,
    },
    "window past a stretch": {"sliding_window": 300},
    "sinks, norms inside the sum": {
        "sliding_window": 300,
        "attention_sinks": True,
        "norm_placement": "inside",
        "qk_norm": True,
        "qk_norm_type": "whole",
        "partial_rotary_factor": 0.5,
    },
    "side by side": {"parallel_block": True, "norm": "layer_norm_no_bias", "residual_multiplier": 0.5},
    # All six take part: which two are best is a near tie for some tokens, which rounding turns in each pass elsewhere.
    "experts with biases": {
        "mlp": "moe",
        "experts": msgspec.structs.replace(
            EXPERTS, num_experts_per_tok=6, bias=True, swiglu_limit=0.7, softmax_first=False
        ),
    },
}


def larger(name: str) -> ModelConfig:
    wide = {"hidden_size": 192, "intermediate_size": 320, "vocab_size": 1000, "max_position_embeddings": 1024}
    return msgspec.structs.replace(BASE, **{**wide, **LARGER[name]})


def bf16_model(config: ModelConfig) -> DecoderModel:
    return build(config).to(torch.bfloat16)


@pytest.mark.long
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("name", LARGER)
def test_long_contexts_and_many_rows_equal_pytorch(name: str, isa: str) -> None:
    """Past a stretch of attention, past a group of rows, with every instruction set of this machine."""
    config = larger(name)
    model = build(config)
    tables = shuffled_tables(2, 640)
    ours, theirs = caches(config, torch.float32, 320), caches(config, torch.float32, 320)
    kernels = cpu_model_of(model, ours, isa=isa)
    for number, spans in enumerate(([(0, 601), (0, 70)], [(601, 602), (70, 71)])):
        count = sum(stop - start for start, stop in spans)
        step = step_of(spans, tables, tokens(count, config.vocab_size, number))
        wanted = run_torch(model, theirs, step).numpy()
        np.testing.assert_allclose(run(kernels, step, config.vocab_size), wanted, atol=2e-4, rtol=2e-4)


@pytest.mark.long
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("name", LARGER)
def test_bf16_is_no_further_from_fp32_than_pytorch(name: str, isa: str) -> None:
    """Log-probabilities of both bf16 passes beside fp32 with the same rounded weights."""
    config = larger(name)
    model = bf16_model(config)
    exact = build(config)
    exact.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    tables = shuffled_tables(3, 80)
    step = step_of([(0, 40), (0, 71), (0, 3)], tables, tokens(114, config.vocab_size))
    wanted = run_torch(exact, caches(config, torch.float32, 60), step).log_softmax(-1)
    cache = caches(config, torch.bfloat16, 60)
    ours = torch.from_numpy(run(cpu_model_of(model, cache, isa=isa), step, config.vocab_size)).log_softmax(-1)
    theirs = run_torch(model, caches(config, torch.bfloat16, 60), step).log_softmax(-1)
    our_error, their_error = (ours - wanted).abs(), (theirs - wanted).abs()
    assert our_error.median() <= 1.2 * their_error.median()
    assert our_error.max() <= 1.2 * their_error.max()


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", instruction_sets())
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_a_row_has_the_same_bits_in_every_batch(isa: str, dtype: torch.dtype, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name in LARGER if name != "window past a stretch"]))
    config = larger(name)
    model = build(config).to(dtype)
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=66))
    tables = shuffled_tables(len(lengths), max(lengths))
    num_blocks = tables.size
    spans = [(0, length) for length in lengths]
    ids = tokens(sum(lengths), config.vocab_size)
    together = run(
        cpu_model_of(model, caches(config, dtype, num_blocks), threads=data.draw(st.integers(1, 3)), isa=isa),
        step_of(spans, tables, ids),
        config.vocab_size,
    )
    row = data.draw(st.integers(0, len(lengths) - 1))
    start = sum(lengths[:row])
    alone = cpu_model_of(model, caches(config, dtype, num_blocks), threads=1, isa=isa)
    found = []
    for position in range(lengths[row]):  # chunked to single tokens as well
        span = [(position, position + 1)]
        step = step_of(span, tables[row : row + 1], ids[start + position : start + position + 1])
        found.append(run(alone, step, config.vocab_size))
    assert np.array_equal(np.concatenate(found), together[start : start + lengths[row]])


def test_choices_of_one_prompt_get_the_same_logits() -> None:
    model, tables = build(BASE), shuffled_tables(2, 16)
    step = step_of(SPANS[0], tables, tokens(14, 61))
    whole = run(cpu_model_of(model, caches(BASE, torch.float32, 8)), step, 61)
    step.logits_indices = np.array([3, 8, 8, 8, 13], dtype=np.int64)
    found = run(cpu_model_of(model, caches(BASE, torch.float32, 8)), step, 61)
    assert np.array_equal(found, whole[step.logits_indices])


def test_what_the_kernels_cannot_run_is_named() -> None:
    assert obstacle(MIXES["latent, rope, swiglu, pre"], torch.float32, CPU) == "attention 'mla'"
    assert obstacle(MIXES["mha, rope, swiglu, post"], torch.float32, CPU) == "norms after the residual sum"
    beside = msgspec.structs.replace(BASE, parallel_block=True, mlp="moe", experts=EXPERTS)
    assert obstacle(beside, torch.float32, CPU) == "experts beside attention"
    assert obstacle(BASE, torch.float16, CPU) == "weights of float16"
    assert obstacle(BASE, torch.float32, torch.device("cuda")) == "weights on cuda"


def broken(step: Step, field: str, place: int, value: int) -> Step:
    array = getattr(step, field).copy()
    array.flat[place] = value
    setattr(step, field, array)
    return step


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_ids", 61, r"`token_ids` must be in \[0, 61\), got 61"),
        ("token_ids", -1, r"`token_ids` must be in \[0, 61\), got -1"),
        ("positions", 16, r"`positions` must be in \[0, 16\), got 16"),
        ("slot_mapping", 32, r"`slot_mapping` must be in \[0, 32\), got 32"),
        ("block_tables", 8, r"`block_tables` must be in \[0, 8\), got 8"),
        ("logits_indices", 14, r"`logits_indices` must be in \[0, 14\), got 14"),
        ("logits_indices", 13, "`logits_indices` must ascend"),
        ("query_start", 1, "differ in length"),
    ],
)
def test_arrays_that_point_outside_are_refused(field: str, value: int, message: str) -> None:
    step = broken(step_of(SPANS[0], shuffled_tables(2, 16), tokens(14, 61)), field, 0, value)
    cache = caches(BASE, torch.float32, 8)
    with pytest.raises(InvalidArgumentError, match=message):
        run(cpu_model_of(build(BASE), cache), step, 61)
    assert not any(tensor.any() for tensor in (*cache.keys, *cache.values))


def half_model() -> tuple[DecoderModel, KVCache]:
    return build(BASE).to(torch.float16), caches(BASE, torch.float32, 8)


def misshaped_model() -> tuple[DecoderModel, KVCache]:
    model = build(BASE)
    model.layers[0].attention.qkv_proj.weight = torch.nn.Parameter(torch.zeros(8, 32))
    return model, caches(BASE, torch.float32, 8)


def mixed_cache() -> tuple[DecoderModel, KVCache]:
    return build(BASE), KVCache(caches(BASE, torch.float32, 8).keys, caches(BASE, torch.bfloat16, 8).values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (half_model, r"float32 or bfloat16 tensors on the CPU, got torch\.float16"),
        (misshaped_model, "layer 0 contradict"),
        (mixed_cache, "of one shape and dtype"),
    ],
)
def test_weights_that_cannot_be_read_are_refused(
    make: Callable[[], tuple[DecoderModel, KVCache]], message: str
) -> None:
    model, cache = make()
    with pytest.raises(InvalidArgumentError, match=message):
        cpu_model_of(model, cache)


def test_settings_out_of_range_are_refused() -> None:
    model, cache = build(BASE), caches(BASE, torch.float32, 8)
    with pytest.raises(InvalidArgumentError, match=r"`num_threads` must be in \[1, 1024\], got 0"):
        cpu_model_of(model, cache, threads=0)
    with pytest.raises(InvalidArgumentError, match="must be one of this machine's"):
        cpu_model_of(model, cache, isa="AVX9")


def test_the_backend_can_be_chosen(tiny_checkpoint: Path) -> None:
    engines = {name: load_engine(tiny_checkpoint, config=EngineConfig(backend=name)) for name in get_args(Backend)}
    runners = {name: type(engine.runner).__name__ for name, engine in engines.items()}
    assert runners == {"auto": "KernelModelRunner", "kernels": "KernelModelRunner", "torch": "TorchModelRunner"}
    with pytest.raises(ConfigError, match=r"`backend` 'kernels' can't run this model: weights of float16"):
        load_engine(tiny_checkpoint, dtype="float16", config=EngineConfig(backend="kernels"))
    assert type(load_engine(tiny_checkpoint, dtype="float16").runner).__name__ == "TorchModelRunner"


def test_info_says_what_runs_the_model(tiny_checkpoint: Path) -> None:
    assert describe(tiny_checkpoint)["CPU decoding"] == f"kernels of llm-oxide ({instruction_sets()[-1]})"


KERNELS = Path(__file__).parents[2] / "rust" / "src" / "kernels"


def test_shared_buffers_are_borrowed_mutably_only_to_be_written() -> None:
    """Two live `&mut` to one place are undefined behaviour even if nobody writes, so reading needs a way of its own."""
    source = "".join(file.read_text() for file in sorted(KERNELS.rglob("*.rs")))
    assert re.findall(r"unsafe fn (\w+)\(&self[^{;]*-> &mut \[f32\]", source) == ["write"]
    assert re.findall(r"unsafe fn (\w+)\(&self[^{;]*-> &\[f32\]", source) == ["read"]
