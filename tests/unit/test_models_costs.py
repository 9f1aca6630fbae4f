"""What a model is said to take, beside what it takes."""

import itertools

import msgspec
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from llm.data import TokenBatch
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.models.costs import (
    estimate_memory,
    flops_per_token,
    kv_bytes_per_token,
    num_active_parameters,
    num_parameters,
)
from llm.models.layers import cpu_training
from llm.settings.model import ExpertsConfig, LatentConfig, ModelConfig
from llm.training.losses import token_losses

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=4,
    max_position_embeddings=256,
    tie_word_embeddings=False,
)
EXPERTS = ExpertsConfig(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=96, dense_layers=(0,))
CONFIGS = {
    "plain": CONFIG,
    "gelu": msgspec.structs.replace(CONFIG, mlp="gelu"),
    "gelu without bias": msgspec.structs.replace(CONFIG, mlp="gelu", mlp_bias=False),
    "experts": msgspec.structs.replace(CONFIG, mlp="moe", experts=EXPERTS),
    "latent": msgspec.structs.replace(CONFIG, attention="mla", latent=LatentConfig()),
}


def peak_bytes(model: DecoderModel, batch: int, length: int, dtype: torch.dtype) -> int:
    """Most bytes that a forward and a backward pass allocate, gradients among them."""
    lengths, token_ids = (length,) * batch, torch.randint(0, 512, (batch * length,))
    samples = TokenBatch(token_ids, token_ids, lengths)
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = token_losses(model, samples).sum()
        loss.backward()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_memory_is_about_what_a_step_allocates(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[name]
    model = DecoderModel(config).train()
    on_cpu = estimate_memory(config, 4, 256, dtype, device="cpu")
    assert on_cpu.activations + on_cpu.gradients == pytest.approx(peak_bytes(model, 4, 256, dtype), rel=0.2)
    if config.latent is None or dtype == torch.float32:  # a GPU never keeps the weights of attention, as a CPU does
        with monkeypatch.context() as patched:  # the operations that a GPU runs
            patched.setattr(cpu_training, "is_training_on_cpu", lambda values: False)
            plain = peak_bytes(model, 4, 256, dtype)
        estimate = estimate_memory(config, 4, 256, dtype)
        assert estimate.activations + estimate.gradients == pytest.approx(plain, rel=0.2)
        assert on_cpu.activations < estimate.activations
    model.gradient_checkpointing = True
    less = estimate_memory(config, 4, 256, dtype, gradient_checkpointing=True, device="cpu")
    assert less.activations + less.gradients == pytest.approx(peak_bytes(model, 4, 256, dtype), rel=0.2)
    assert less.activations < on_cpu.activations
    assert on_cpu.weights == on_cpu.gradients == on_cpu.optimizer / 2 == 4 * model.num_parameters()
    assert on_cpu.total == 16 * model.num_parameters() + on_cpu.activations


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_equal_those_that_pytorch_counts(name: str) -> None:
    length, config = 64, CONFIGS[name]
    model = DecoderModel(config)
    token_ids = torch.randint(0, 512, (length,))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(token_ids, positions_of((length,)), ForwardContext.for_sequences((length,))).sum().backward()
    # PyTorch counts attention without regard to causality: twice what is seen, but for a token's sight of itself.
    seen = flops_per_token(config, length) - flops_per_token(config, 1)
    counted = counter.get_total_flops() / length
    assert flops_per_token(config, length) + seen == pytest.approx(counted, rel=0.02)


def test_a_window_bounds_what_a_token_sees() -> None:
    slides = msgspec.structs.replace(CONFIG, sliding_window=16)
    assert flops_per_token(slides, 16) == flops_per_token(CONFIG, 16)
    assert flops_per_token(slides, 200) < flops_per_token(CONFIG, 40)


def test_parameters_and_cache_are_counted() -> None:
    config = CONFIGS["experts"]
    assert num_parameters(config) == DecoderModel(config).num_parameters()
    one = msgspec.structs.replace(EXPERTS, num_experts=2)
    two_experts = num_parameters(msgspec.structs.replace(config, experts=one))
    assert num_active_parameters(config) == two_experts + 3 * 4 * 128  # the router still scores all six
    assert num_active_parameters(CONFIG) == num_parameters(CONFIG)
    assert kv_bytes_per_token(CONFIG, torch.bfloat16) == 4 * 2 * (32 + 32) * 2
    assert kv_bytes_per_token(CONFIGS["latent"], torch.bfloat16) == 4 * (64 + 16) * 2
