"""Components by name."""

import pytest
import torch
from torch import nn

import llm
from llm import DecoderModel, ModelConfig
from llm.errors import RegistryError
from llm.models import ForwardContext, positions_of
from llm.registry import BUILTIN_COMPONENTS, ComponentRegistry


def test_built_in_names_resolve_without_further_imports() -> None:
    for kind, named in BUILTIN_COMPONENTS.items():
        for name in named:
            assert issubclass(llm.registry.get(kind, name), nn.Module)


def test_unknown_names_list_the_valid_ones() -> None:
    with pytest.raises(
        RegistryError,
        match=r"unknown norm `rmsnorm`; did you mean `rms_norm`\? "
        r"Valid: layer_norm, layer_norm_no_bias, offset_rms_norm, rms_norm",
    ):
        llm.registry.get("norm", "rmsnorm")
    with pytest.raises(RegistryError, match="unknown kind of component `norms`"):
        llm.registry.names("norms")


def test_a_registered_class_is_built_into_the_model() -> None:
    name = "zero_for_this_test"

    @llm.registry.register("mlp", name)
    class Zero(nn.Module):
        def __init__(self, config: ModelConfig, layer_idx: int) -> None:
            super().__init__()

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(hidden_states)

    model = DecoderModel(ModelConfig(vocab_size=10, mlp=name))
    assert isinstance(model.layers[0].mlp, Zero)
    logits = model(torch.arange(4), positions_of((4,)), ForwardContext.for_sequences((4,)))
    assert logits.shape == (4, 10)


def test_a_taken_name_is_refused() -> None:
    components = ComponentRegistry({"norm": {}})
    components.register("norm", "mine")(nn.Identity)
    components.register("norm", "mine")(nn.Identity)
    with pytest.raises(RegistryError, match="already registered"):
        components.register("norm", "mine")(nn.Linear)
