"""Low-rank adapters of a model's projections."""

import math

import msgspec
import pytest
import torch
from torch import Tensor

from llm.errors import CheckpointError, ConfigError
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.models.adapters import adapt, adapters_of, adapters_off, merge_into, projections_of
from llm.models.layers.lora import AdaptedLinear, Factors, whole_weight
from llm.settings.model import LatentConfig, ModelConfig
from llm.settings.run import LoraConfig

CONFIG = ModelConfig(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, max_position_embeddings=16
)
LENGTHS = (7, 5)


def logits_of(model: DecoderModel) -> Tensor:
    ids = torch.arange(sum(LENGTHS)) % 40
    return model(ids, positions_of(LENGTHS), ForwardContext.for_sequences(LENGTHS))


def adapted(config: ModelConfig = CONFIG, **settings: object) -> DecoderModel:
    """Returns a model whose adapters are not zero."""
    torch.manual_seed(3)
    model = DecoderModel(config)
    adapt(model, msgspec.convert({"rank": 3, **settings}, LoraConfig))
    with torch.no_grad():
        for _, _, adapter in adapters_of(model):
            adapter.lora_b.normal_(0, 0.2)
            if adapter.magnitude is not None:
                adapter.magnitude.mul_(torch.rand_like(adapter.magnitude) + 0.5)
    return model.eval()


def merged(model: DecoderModel, config: ModelConfig = CONFIG) -> DecoderModel:
    """Returns a plain model with the adapters in its weights."""
    torch.manual_seed(3)
    plain = DecoderModel(config)
    found = {}
    for part, _, adapter in adapters_of(model):
        own = adapter.factors()
        magnitude = None if own.magnitude is None else part.to_disk(own.magnitude)
        found[part.name] = Factors(own.lora_a, part.to_disk(own.lora_b), own.scale, magnitude)
    merge_into(plain, found)
    return plain.eval()


def test_a_new_adapter_changes_no_logit() -> None:
    torch.manual_seed(3)
    plain = DecoderModel(CONFIG)
    expected = logits_of(plain)
    for use_dora in (False, True):
        torch.manual_seed(3)
        model = DecoderModel(CONFIG)
        adapt(model, LoraConfig(rank=4, use_dora=use_dora))
        torch.testing.assert_close(logits_of(model), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "alpha": 5},
        {"target_modules": ["v_proj", "up_proj"], "use_dora": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True])
def test_an_adapted_model_computes_what_the_merged_one_does(settings: dict[str, object], bias: bool) -> None:
    config = msgspec.structs.replace(CONFIG, attention_bias=bias, attention_output_bias=bias, mlp_bias=bias)
    model = adapted(config, **settings)
    torch.testing.assert_close(logits_of(model), logits_of(merged(model, config)), atol=1e-5, rtol=1e-4)


def test_the_gradient_is_that_of_the_low_rank_product() -> None:
    model = adapted()
    logits_of(model).square().sum().backward()
    plain = merged(model).train(False)
    logits_of(plain).square().sum().backward()
    for part, _, adapter in adapters_of(model):
        whole = plain.get_submodule(part.path).get_parameter("weight").grad[part.rows]
        expected = adapter.scale * adapter.lora_b.detach().T @ whole
        torch.testing.assert_close(adapter.lora_a.grad, expected, atol=1e-3, rtol=1e-3, msg=part.name)
        expected = adapter.scale * whole @ adapter.lora_a.detach().T
        torch.testing.assert_close(adapter.lora_b.grad, expected, atol=1e-3, rtol=1e-3, msg=part.name)


def test_training_passes_equal_those_of_layers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks with gradients of their own, recomputed or not, give what PyTorch's operations give."""
    model = adapted().train()
    found = {}
    for way in ("blocks", "recomputed", "layers"):
        model.gradient_checkpointing = way == "recomputed"
        if way == "layers":
            monkeypatch.setattr("llm.models.decoder.train_block", lambda *_: None)
        model.zero_grad()
        logits = logits_of(model)
        logits.square().sum().backward()
        found[way] = [logits, *(part.grad for part in model.parameters() if part.requires_grad)]
    for way in ("blocks", "recomputed"):
        for one, other in zip(found[way], found["layers"], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_only_adapters_have_gradients() -> None:
    model = adapted().train()
    logits_of(model).sum().backward()
    with_gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradients == {name for name, _ in model.named_parameters() if ".adapters." in name}


def test_scale_follows_alpha_and_rank() -> None:
    assert LoraConfig(rank=16).scale == 2.0
    assert LoraConfig(rank=16, alpha=8).scale == 0.5
    assert LoraConfig(rank=16, alpha=8, use_rslora=True).scale == 2.0


def test_first_values_are_those_of_the_paper_and_peft() -> None:
    torch.manual_seed(0)
    model = DecoderModel(CONFIG)
    adapt(model, LoraConfig(rank=8))
    for _, _, adapter in adapters_of(model):
        assert not adapter.lora_b.any()
        bound = 1 / math.sqrt(adapter.lora_a.shape[1])
        assert 0.9 * bound < float(adapter.lora_a.detach().abs().max()) <= bound


def test_dropout_applies_in_training_only() -> None:
    model = adapted(input_dropout=0.5)
    torch.testing.assert_close(logits_of(model), logits_of(model))
    model.train()
    assert not torch.equal(logits_of(model), logits_of(model))


def test_latent_attention_takes_adapters_with_and_without_a_cache() -> None:
    latent = LatentConfig(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
    config = msgspec.structs.replace(
        CONFIG, attention="mla", latent=latent, num_attention_heads=4, num_key_value_heads=4, head_dim=12
    )
    model = adapted(config)
    torch.testing.assert_close(logits_of(model), logits_of(merged(model, config)), atol=1e-5, rtol=1e-4)
    layer = model.layers[0].attention.kv_b_proj
    assert isinstance(layer, AdaptedLinear)
    torch.testing.assert_close(whole_weight(layer), merged(model, config).layers[0].attention.kv_b_proj.weight)
    torch.manual_seed(3)
    plain = DecoderModel(config).eval()
    with adapters_off(model):
        torch.testing.assert_close(logits_of(model), logits_of(plain))


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"all-linear or among down_proj, gate_proj, .*got 'wq'"):
        adapt(DecoderModel(CONFIG), LoraConfig(rank=2, target_modules=("wq",)))


def test_an_adapter_of_another_shape_names_its_tensor() -> None:
    model = DecoderModel(CONFIG)
    name = next(iter(projections_of(model)))
    with pytest.raises(CheckpointError, match=rf"{name}.lora_A has shape \[2, 31\], the base needs \[2, 32\]"):
        merge_into(model, {name: Factors(torch.zeros(2, 31), torch.zeros(32, 2), 1.0)})
    with pytest.raises(CheckpointError, match=r"model.layers.9.self_attn.q_proj is no linear layer of the base"):
        merge_into(model, {"model.layers.9.self_attn.q_proj": Factors(torch.zeros(2, 32), torch.zeros(32, 2), 1.0)})


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"input_dropout": 0.5}], ids=str)
def test_adapters_are_off_within_the_context_alone(settings: dict[str, object], is_training: bool) -> None:
    torch.manual_seed(3)
    plain = DecoderModel(CONFIG).train(is_training)
    model = adapted(**settings).train(is_training)
    with torch.set_grad_enabled(is_training):
        with adapters_off(model):
            torch.testing.assert_close(logits_of(model), logits_of(plain))
        assert not torch.equal(logits_of(model), logits_of(plain))
