"""A block's operations in training on a CPU: values and gradients are those of its layers."""

import copy
import resource
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from llm.models import DecoderModel, ForwardContext, Targets, positions_of
from llm.models.decoder import TransformerBlock
from llm.models.layers import cpu_halves
from llm.settings.model import ModelConfig
from llm.training.allocator import kept_memory

GPT: dict[str, Any] = {"mlp": "gelu", "mlp_bias": False, "norm": "layer_norm", "position_encoding": "learned"}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "narrow": {"num_attention_heads": 8},
    "uneven": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5},
    "gpt": GPT,
    "gpt-uneven": GPT | {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5},
    "gpt-tanh": GPT | {"hidden_act": "gelu_pytorch_tanh", "norm": "layer_norm_no_bias"},
}


def model_of(**changes: Any) -> DecoderModel:
    shape = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2} | changes
    torch.manual_seed(0)
    model = DecoderModel(ModelConfig(**shape)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def trained(model: DecoderModel, lengths: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Returns log-probabilities and gradients of the model's weights."""
    ids, labels = torch.randint(0, 50, (2, sum(lengths)), generator=torch.Generator().manual_seed(1))
    context = ForwardContext.for_sequences(lengths, targets=Targets(labels, is_summed=True))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logprobs = model(ids, positions_of(lengths), context)
    gradients = torch.autograd.grad(logprobs.sum(), list(model.parameters()))
    return logprobs.detach(), list(gradients)


def by_layers(model: DecoderModel) -> DecoderModel:
    """Returns a copy whose blocks run layer by layer, because somebody watches a layer."""
    watched = copy.deepcopy(model)
    for block in watched.layers:
        assert isinstance(block, TransformerBlock)
        block.attention.o_proj.register_forward_hook(lambda *_: None)
    return watched


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", [(12, 12), (400,), (70, 1, 12)])
@pytest.mark.parametrize(
    ("dtype", "by_onednn"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
def test_a_block_computes_what_its_layers_compute(
    shape: str, lengths: tuple[int, ...], dtype: torch.dtype, by_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_halves, "PREFERS_ONEDNN", by_onednn)
    model = model_of(max_position_embeddings=512, **SHAPES[shape])
    logprobs, gradients = trained(model, lengths, dtype)
    wanted_logprobs, wanted = trained(by_layers(model), lengths, dtype)
    _, exact = trained(model, lengths, torch.float32)
    is_exact = dtype == torch.float32
    torch.testing.assert_close(logprobs, wanted_logprobs, atol=1e-5 if is_exact else 0.1, rtol=0)
    for found, expected, true in zip(gradients, wanted, exact, strict=True):
        allowed = 1e-5 * true.norm() if is_exact else 1.3 * (expected - true).norm() + 0.005 * true.norm()
        assert (found - (expected if is_exact else true)).norm() <= allowed


@pytest.mark.parametrize("shape", SHAPES)
def test_values_in_fp32_have_gradients_in_bf16(shape: str) -> None:
    model, lengths = model_of(max_position_embeddings=512, **SHAPES[shape]), (70, 12)
    ids, labels = torch.randint(0, 50, (2, sum(lengths)), generator=torch.Generator().manual_seed(1))
    targets = Targets(labels, gradient_dtype=torch.bfloat16)
    logprobs = model(ids, positions_of(lengths), ForwardContext.for_sequences(lengths, targets=targets))
    gradients = torch.autograd.grad(logprobs.sum(), list(model.parameters()))
    wanted, exact = trained(model, lengths, torch.float32)
    _, rounded = trained(model, lengths, torch.bfloat16)
    torch.testing.assert_close(logprobs.detach(), wanted, atol=1e-5, rtol=0)
    for found, other, true in zip(gradients, rounded, exact, strict=True):
        assert found.dtype == torch.float32
        assert 0 < (found - true).norm() <= 1.3 * (other - true).norm() + 0.005 * true.norm()


def names_of(model: DecoderModel, lengths: tuple[int, ...]) -> set[str]:
    """Returns the names of the operations in the graph of a pass."""
    context = ForwardContext.for_sequences(lengths)
    output = model(torch.zeros(sum(lengths), dtype=torch.int64), positions_of(lengths), context)
    found, nodes = set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        found.add(type(node).__name__)
        nodes += [each for each, _ in node.next_functions if each is not None]
    return found


def test_blocks_run_as_two_operations_only_where_nobody_can_tell() -> None:
    halves = {"AttentionHalfBackward", "FeedForwardHalfBackward"}
    model = model_of()
    assert halves <= names_of(model, (6, 6))
    assert halves <= names_of(model, (6, 4))
    assert not halves & names_of(model_of(num_attention_heads=8), (6, 4))
    assert not halves & names_of(by_layers(model), (6, 6))
    assert not halves & names_of(model_of(dropout=0.1), (6, 6))
    assert not halves & names_of(model_of(attention_bias=True), (6, 6))
    assert not halves & names_of(model_of(sliding_window=4), (6, 6))
    with FlopCounterMode(display=False):
        assert not halves & names_of(model, (6, 6))


def test_frozen_matrices_have_no_gradient_and_change_no_other() -> None:
    frozen, lengths = model_of(), (12, 12)
    for block in frozen.layers:
        block.get_parameter("mlp.down_proj.weight").requires_grad_(False)
        block.get_parameter("attention.qkv_proj.weight").requires_grad_(False)
    assert {"AttentionHalfBackward", "FeedForwardHalfBackward"} <= names_of(frozen, lengths)
    wholly = model_of()
    for model in (frozen, wholly):
        context = ForwardContext.for_sequences(lengths)
        model(torch.arange(24), positions_of(lengths), context).square().sum().backward()
    for (name, one), other in zip(frozen.named_parameters(), wholly.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, msg=name)
        else:
            assert one.grad is None


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is glibc on Linux only")
def test_memory_is_kept_while_a_model_trains() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with kept_memory(torch.device("cpu")):
        # 64 MiB are 16,384 pages; the first calls may take other free blocks.
        assert min(faults() for _ in range(8)) < 1000
