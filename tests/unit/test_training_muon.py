"""Muon against PyTorch's, which knows single matrices only, and against the definition of its step."""

import pytest
import torch
from torch import Tensor, nn

from llm.models import DecoderModel
from llm.settings.model import ExpertsConfig, ModelConfig
from llm.settings.run import OptimizerConfig
from llm.training.optim import Muon, build_optimizer, set_learning_rate
from llm.training.optim.muon import orthogonalized

SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
EXPERTS = ExpertsConfig(num_experts=3, moe_intermediate_size=24, shared_expert_intermediate_size=16)


def model_of(**settings: object) -> DecoderModel:
    torch.manual_seed(0)
    return DecoderModel(ModelConfig(**(SIZES | settings)))  # type: ignore[arg-type]


def gradients(model: nn.Module, step: int) -> None:
    torch.manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> dict[str, Tensor]:
    for step in range(steps):
        gradients(model, step)
        set_learning_rate(optimizer, 0.01 * (step + 1))
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("shape", [(16, 16), (4, 12, 30), (30, 12), (2, 3, 9, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalized_keeps_the_singular_vectors_and_evens_the_values(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(1.0, 0.05, left.shape[-1])
    got = left.mT @ orthogonalized(left * values @ right, dtype) @ right.mT
    diagonal = torch.diagonal(got, dim1=-2, dim2=-1)
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3
    assert (got - torch.diag_embed(diagonal)).abs().max() < (1e-4 if dtype == torch.float32 else 0.1)


def test_orthogonalized_leaves_zero_at_zero() -> None:
    assert not orthogonalized(torch.zeros(2, 4, 6), torch.bfloat16).any()


def test_single_matrices_step_like_those_of_pytorchs_muon() -> None:
    ours, theirs = (nn.Linear(24, 40, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours, OptimizerConfig(name="muon", weight_decay=0.2), torch.bfloat16)
    twin = torch.optim.Muon(theirs.parameters(), weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for group in twin.param_groups:
        group["rate_factor"] = 1.0
    got, expected = trained(ours, optimizer)["weight"], trained(theirs, twin)["weight"]
    # PyTorch's Muon divides by the norm in bf16, ours in fp32 before it rounds.
    assert (got - expected).abs().max() < 0.02 * 0.03


def test_joined_matrices_and_experts_step_one_by_one() -> None:
    joined = model_of(mlp="moe", experts=EXPERTS, num_key_value_heads=2)
    optimizer = build_optimizer(joined, OptimizerConfig(name="muon", weight_decay=0.0))
    before = {name: parameter.detach().clone() for name, parameter in joined.named_parameters()}
    after = trained(joined, optimizer, steps=1)
    # In the first step the Nesterov momentum of a gradient g is (1 - momentum²) · g, and the step ignores its scale.
    gradients(joined, 0)
    found = {name: parameter.grad for name, parameter in joined.named_parameters()}
    cuts = {
        "layers.1.attention.qkv_proj.weight": [(0, 32), (32, 48), (48, 64)],
        "layers.1.mlp.shared_expert.gate_up_proj.weight": [(0, 16), (16, 32)],
        "layers.1.mlp.experts.gate_up_proj": [(0, 24), (24, 48)],
        "layers.1.mlp.experts.down_proj": [(0, 32)],
    }
    for name, pieces in cuts.items():
        stack = found[name].reshape(-1, *found[name].shape[-2:])
        for idx in range(len(stack)):
            for first, last in pieces:
                rows = (idx, slice(first, last))
                step = (after[name] - before[name]).reshape(stack.shape)[rows]
                piece = stack[rows]
                expected = -0.01 * 0.2 * max(piece.shape) ** 0.5 * orthogonalized(piece, torch.float32)
                assert torch.allclose(step, expected, atol=1e-5), (name, idx, first)


def test_embeddings_outputs_norms_and_biases_step_like_adamws() -> None:
    settings = {"tie_word_embeddings": False, "attention_bias": True, "position_encoding": "learned"}
    models = [model_of(**settings) for _ in range(2)]
    settings_of = [OptimizerConfig(name="muon"), OptimizerConfig(name="adamw")]
    optimizers = [build_optimizer(model, one) for model, one in zip(models, settings_of, strict=True)]
    muon, adamw = (trained(*pair) for pair in zip(models, optimizers, strict=True))
    different = {name.rpartition("layers.0.")[2] for name in muon if not torch.equal(muon[name], adamw[name])}
    assert {name for name in different if "layers" not in name} == {
        "attention.qkv_proj.weight",
        "attention.o_proj.weight",
        "mlp.gate_up_proj.weight",
        "mlp.down_proj.weight",
    }
    assert isinstance(optimizers[0], Muon)


def test_steps_have_the_root_mean_square_of_adamws() -> None:
    model = model_of()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    after = trained(model, build_optimizer(model, OptimizerConfig(name="muon", weight_decay=0.0)), steps=1)
    for name in ("layers.0.attention.qkv_proj.weight", "layers.1.mlp.down_proj.weight"):
        rms = (after[name] - before[name]).square().mean().sqrt() / 0.01
        assert 0.15 < rms < 0.25, name


def test_a_parameter_without_gradient_stays() -> None:
    model = model_of()
    optimizer = build_optimizer(model, OptimizerConfig(name="muon"))
    gradients(model, 0)
    weight = model.layers[0].attention.qkv_proj.weight  # type: ignore[union-attr]
    weight.grad, before = None, weight.detach().clone()  # type: ignore[union-attr]
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    assert torch.equal(weight, before)  # type: ignore[arg-type]
