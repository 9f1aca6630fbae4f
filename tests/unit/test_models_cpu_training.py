"""Operations of training on a CPU: their values and gradients are those of PyTorch's compositions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.models import ForwardContext, Targets, positions_of
from llm.models.decoder import DecoderModel
from llm.models.layers import cpu_training
from llm.models.layers.attend import AttentionRule, attend
from llm.models.layers.cpu_attention import kernel_suits
from llm.models.layers.cpu_norm import Normalize, NormRule
from llm.models.layers.cpu_training import Linear, Rotate, ShortAttention, SwiGLU
from llm.models.layers.norm import LayerNorm, LayerNormNoBias, RMSNorm
from llm.models.layers.rotary import rotate
from llm.settings.model import ModelConfig


def fp64(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def angles(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    turns = torch.arange(tokens, dtype=torch.float64)[:, None, None] * torch.rand(width // 2, dtype=torch.float64)
    return turns.cos(), turns.sin()


def names_of(values: Tensor) -> list[str]:
    """Returns the names of the graph's nodes along first inputs, from the last operation on."""
    node, names = values.grad_fn, []
    while node is not None:
        names.append(type(node).__name__)
        node = node.next_functions[0][0] if node.next_functions else None
    return names


def test_gradients_pass_gradcheck() -> None:
    torch.manual_seed(0)
    check = torch.autograd.gradcheck
    rule = NormRule(1e-5, is_rms=True, has_kernel=False)
    assert check(lambda rows, weight: Normalize.apply(rule, rows, weight, None), (fp64(3, 5), fp64(5)))
    assert check(SwiGLU.apply, (fp64(3, 8),))
    cosine, sine = angles(3, 4)
    assert check(lambda heads: Rotate.apply(heads, cosine, sine, 3), (fp64(3, 5, 4),))


def test_values_are_those_of_the_compositions() -> None:
    torch.manual_seed(0)
    gate_up, heads = fp64(6, 10), fp64(6, 5, 4)
    gate, up = gate_up.chunk(2, -1)
    torch.testing.assert_close(SwiGLU.apply(gate_up), F.silu(gate) * up)
    cosine, sine = (part.float() for part in angles(6, 4))
    for dtype in (torch.float32, torch.bfloat16):
        narrow = heads.to(dtype)
        found = Rotate.apply(narrow, cosine, sine, 3)
        torch.testing.assert_close(found[:, :3], rotate(narrow[:, :3], (cosine, sine)))
        assert torch.equal(found[:, 3:], narrow[:, 3:])


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm, LayerNormNoBias])
@pytest.mark.parametrize(
    ("size", "dtype"), [((70, 48), torch.float32), ((5, 3, 32), torch.float32), ((6, 10), torch.float64)]
)
def test_norms_in_training_have_the_values_and_gradients_of_pytorch(
    kind: type[RMSNorm | LayerNorm], size: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = kind(size[-1], 1e-5).to(dtype)
    leaves = [torch.randn(size, dtype=dtype).requires_grad_(), *layer.parameters()]
    for parameter in leaves[1:]:
        torch.nn.init.normal_(parameter)
    upstream = torch.randn(size, dtype=dtype)
    found = layer(leaves[0])
    is_own = kernel_suits(size[-1], dtype) or kind is RMSNorm
    assert is_own == any("NormalizeBackward" in name for name in names_of(found))
    turned = leaves[0].detach().mT.contiguous().mT.requires_grad_()  # the same numbers in another order
    assert torch.equal(layer(turned), found)
    gradients = torch.autograd.grad(found, leaves, upstream)
    plain = F.rms_norm if kind is RMSNorm else F.layer_norm
    expected = plain(leaves[0], (size[-1],), *leaves[1:], eps=1e-5)
    torch.testing.assert_close(found, expected)
    for own, wanted in zip(gradients, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)


def test_the_product_of_fp32_training_has_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_training, "PREFERS_ONEDNN", True)
    torch.manual_seed(0)
    layer, values = Linear(512, 300, bias=False), torch.randn(12, 512, requires_grad=True)
    found = layer(values)
    assert type(found.grad_fn).__name__ == "_ProductBackward"
    torch.testing.assert_close(found, values @ layer.weight.T, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(12, 300)
    found.backward(upstream)
    torch.testing.assert_close(values.grad, upstream @ layer.weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.weight.grad, upstream.T @ values)


@pytest.mark.parametrize(("heads", "kv_heads", "length"), [(4, 4, 64), (4, 2, 100), (3, 1, 256), (2, 2, 7)])
def test_short_attention_is_as_exact_as_pytorch(heads: int, kv_heads: int, length: int) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, number, length, 16) * 2 for number in (heads, kv_heads, kv_heads)]
    upstream = torch.randn(2, heads, length, 16)

    def gradients(parts: list[Tensor], is_short: bool) -> tuple[Tensor, ...]:
        leaves = [part.requires_grad_() for part in parts]
        if is_short:
            mixed = ShortAttention.apply(*leaves, 0.25)
        else:
            grouped = heads != kv_heads
            mixed = F.scaled_dot_product_attention(*leaves, is_causal=True, scale=0.25, enable_gqa=grouped)
        return torch.autograd.grad(mixed, leaves, upstream.to(mixed.dtype))

    wanted = gradients([part.clone() for part in exact], is_short=False)
    for found, plain, gradient in zip(
        gradients([part.bfloat16() for part in exact], is_short=True),
        gradients([part.bfloat16() for part in exact], is_short=False),
        wanted,
        strict=True,
    ):
        error, plain_error = (float((part.float() - gradient).norm()) for part in (found, plain))
        assert error <= 1.5 * plain_error + 1e-3 * float(gradient.norm())


def test_short_attention_is_taken_in_half_precision_training_only() -> None:
    rule = AttentionRule(0.25)
    for dtype, wanted in ((torch.bfloat16, "ShortAttentionBackward"), (torch.float32, "ScaledDot")):
        parts = [torch.randn(8, 2, 16, dtype=dtype, requires_grad=True) for _ in range(3)]
        names = names_of(attend(*parts, (8,), rule))
        assert any(name.startswith(wanted) for name in names), names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_pass_is_the_pass_of_inference(dtype: torch.dtype) -> None:
    config = ModelConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    torch.manual_seed(0)
    model = DecoderModel(config).train()
    ids, labels = torch.randint(0, 50, (2, 24))
    context = ForwardContext.for_sequences((12, 12), targets=Targets(labels, is_summed=True))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        trained = model(ids, positions_of((12, 12)), context)
        with torch.no_grad():
            inferred = model(ids, positions_of((12, 12)), context)
    trained.sum().backward()
    torch.testing.assert_close(trained, inferred, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0)
