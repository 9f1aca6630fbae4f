"""The decoder: shapes, causality, paged equals dense, parity with transformers."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from llm.checkpoint import load_model, save_tensors, write_model
from llm.errors import CheckpointError
from llm.models import DecoderModel, ForwardContext, PagedCache, positions_of
from llm.models.families.base import normalised
from llm.models.hf import config_from_hf, config_to_hf, weights_to_hf
from llm.settings.model import ModelConfig

CONFIGS = {
    "gqa tied": ModelConfig(vocab_size=97),
    "mha untied": ModelConfig(vocab_size=97, num_key_value_heads=4, tie_word_embeddings=False, rope_theta=50_000.0),
    "mqa wide heads": ModelConfig(vocab_size=97, num_key_value_heads=1, head_dim=48, rms_norm_eps=1e-6),
}
OTHER_CONFIGS = {
    "layer norm": ModelConfig(vocab_size=97, norm="layer_norm"),
    "layer norm without bias": ModelConfig(vocab_size=97, norm="layer_norm_no_bias"),
    "gelu": ModelConfig(vocab_size=97, mlp="gelu"),
}


def build(config: ModelConfig, seed: int = 0) -> DecoderModel:
    torch.manual_seed(seed)
    model = DecoderModel(config).eval()
    for parameter in model.parameters():  # norms start at one: move them so that a mix-up shows
        torch.nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 1.0, 0.08)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name: str) -> None:
    config = CONFIGS[name]
    model = build(config)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config_to_hf(config))).eval()
    result = theirs.load_state_dict(weights_to_hf(model.state_dict(), config), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == (["lm_head.weight"] if config.tie_word_embeddings else [])
    theirs.tie_weights()
    token_ids = torch.randint(0, 97, (3, 40))
    with torch.no_grad():
        ours = model(token_ids.flatten(), positions_of((40,) * 3), ForwardContext.for_sequences((40,) * 3))
        wanted = theirs(token_ids).logits.flatten(0, 1)
    assert wanted.std() > 0.1
    assert (ours - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("name", CONFIGS | OTHER_CONFIGS)
def test_weights_survive_the_way_to_disk_names_and_back(name: str, tmp_path: Path) -> None:
    config = (CONFIGS | OTHER_CONFIGS)[name]
    model = build(config)
    state = model.state_dict()
    write_model(tmp_path, model, None)
    back = load_model(tmp_path).state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert normalised(config_from_hf(config_to_hf(config))) == normalised(config)


@pytest.mark.parametrize("name", CONFIGS | OTHER_CONFIGS)
def test_a_token_sees_nothing_after_it_and_nothing_of_its_neighbours(name: str) -> None:
    model = build((CONFIGS | OTHER_CONFIGS)[name])
    lengths = (5, 9, 2)
    token_ids = torch.randint(0, 97, (16,))
    embedded: list[Tensor] = []
    model.embed_tokens.register_forward_hook(lambda module, given, output: embedded.append(output) or None)
    logits = model(token_ids, positions_of(lengths), ForwardContext.for_sequences(lengths))
    position = 9  # the fifth token of the second sequence
    (gradient,) = torch.autograd.grad(logits[position].square().sum(), embedded[0])
    reached = gradient.abs().sum(1).nonzero().flatten().tolist()
    assert reached == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk", [1, 3, 7, 24])
def test_paged_chunks_equal_one_dense_pass(name: str, chunk: int) -> None:
    config = CONFIGS[name]
    model = build(config)
    token_ids = torch.randint(0, 97, (24,))
    block_size, blocks = 4, torch.tensor([[9, 2, 7, 4, 0, 5]], dtype=torch.int32)
    shape = (10, block_size, config.num_key_value_heads, config.head_width)
    keys = [torch.full(shape, 7.0) for _ in range(config.num_hidden_layers)]
    values = [torch.full(shape, 7.0) for _ in range(config.num_hidden_layers)]
    parts = []
    with torch.no_grad():
        dense = model(token_ids, positions_of((24,)), ForwardContext.for_sequences((24,)))
        for start in range(0, 24, chunk):
            positions = torch.arange(start, min(start + chunk, 24))
            slots = blocks[0, positions // block_size].long() * block_size + positions % block_size
            cache = PagedCache(keys, values, slots, blocks)
            context = ForwardContext((len(positions),), (int(positions[-1]) + 1,), cache=cache)
            parts.append(model(token_ids[positions], positions, context))
    assert (torch.cat(parts) - dense).abs().max() < 1e-4


def test_only_the_rows_asked_for_get_logits() -> None:
    model = build(CONFIGS["gqa tied"])
    token_ids, rows = torch.randint(0, 97, (8,)), torch.tensor([2, 7])
    every = model(token_ids, positions_of((3, 5)), ForwardContext.for_sequences((3, 5)))
    some = model(token_ids, positions_of((3, 5)), ForwardContext.for_sequences((3, 5), rows))
    assert torch.allclose(some, every[rows], atol=1e-6)


def test_norms_of_a_block_are_two_modules() -> None:
    block = build(CONFIGS["gqa tied"]).layers[0]
    assert block.norm1 is not block.norm2
    assert block.norm1.weight is not block.norm2.weight


def test_residual_projections_start_smaller() -> None:
    torch.manual_seed(0)
    model = DecoderModel(ModelConfig(vocab_size=97, num_hidden_layers=8))
    down, gate = model.layers[0].mlp.down_proj.weight, model.layers[0].mlp.gate_up_proj.weight
    assert float(gate.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(down.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)


def test_every_wrong_tensor_is_listed(tmp_path: Path) -> None:
    config = CONFIGS["gqa tied"]
    tensors = weights_to_hf(build(config).state_dict(), config)
    del tensors["model.norm.weight"]
    tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(3, 3)
    tensors["extra"] = torch.zeros(2)
    save_tensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    for part in ("missing model.norm.weight [128]", "q_proj.weight has shape [3, 3]", "unexpected extra [2]"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type must be one of llama, mistral, .*llm_oxide, got 'mamba'"),
        ({"hidden_act": "quick_gelu"}, "`hidden_act` must be"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config`"),
        ({"rope_parameters": {"rope_type": "ntk", "rope_theta": 1e4}}, "rotary scaling must be default, linear"),
        ({"num_attention_heads": "four"}, "`num_attention_heads` must be"),
        ({"rope_theta": "abc"}, "`rope_theta` must be `float`, got 'abc'"),
        ({"rope_parameters": "abc"}, "`rope_parameters` must be an object"),
    ],
)
def test_foreign_features_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_from_hf(config_to_hf(CONFIGS["gqa tied"]) | change)
