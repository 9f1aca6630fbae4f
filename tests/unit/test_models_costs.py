"""What a model is said to take, beside what it takes."""

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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
    "experts": msgspec.structs.replace(CONFIG, mlp="moe", experts=EXPERTS),
    "latent": msgspec.structs.replace(CONFIG, attention="mla", latent=LatentConfig()),
}


def saved_bytes(model: DecoderModel, batch: int, length: int) -> int:
    """Bytes of all that autograd keeps for the backward pass, but for parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    lengths, token_ids = (length,) * batch, torch.randint(0, 512, (batch * length,))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(token_ids, positions_of(lengths), ForwardContext.for_sequences(lengths))
        loss = F.cross_entropy(logits.float(), token_ids)
    loss.backward()
    return sum(kept.values())


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_activations_are_about_what_autograd_keeps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DecoderModel(CONFIGS[name]).train()
    estimate = estimate_memory(CONFIGS[name], 4, 256, torch.float32)
    on_cpu = saved_bytes(model, 4, 256)
    with monkeypatch.context() as patched:  # the operations that a GPU runs
        patched.setattr(cpu_training, "is_training_on_cpu", lambda values: False)
        plain = saved_bytes(model, 4, 256)
    assert estimate.activations == pytest.approx(plain, rel=0.2)
    assert on_cpu <= plain
    model.gradient_checkpointing = True
    recomputed = estimate_memory(CONFIGS[name], 4, 256, torch.float32, gradient_checkpointing=True)
    assert saved_bytes(model, 4, 256) <= recomputed.activations < estimate.activations
    assert estimate.weights == estimate.gradients == estimate.optimizer / 2 == 4 * model.num_parameters()
    assert estimate.total == 16 * model.num_parameters() + estimate.activations


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
