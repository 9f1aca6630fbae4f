"""GGUF files written here: read back they are the same model, to us and to transformers, with the same tokenizer."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.errors import CheckpointError, InvalidArgumentError, TokenizerError
from llm.models.gguf import QUANTIZATIONS, read_config, read_tensors, write_gguf_model
from llm.tokenization import BPETokenizer, SimpleCharacterTokenizer

VOCAB_SIZE = 400  # more than the tokenizer has: rows without a token are usual
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
TIED = SIZES | {"tie_word_embeddings": True}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 32}
GPT_OSS = SIZES | {
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 7,
    "layer_types": ["full_attention", "sliding_attention"],
}
DEEPSEEK = SIZES | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "moe_intermediate_size": 48,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
# Widths that transformers takes for granted when it reads a GGUF file, where it doesn't look them up there.
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama biased": transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama tied": transformers.LlamaConfig(**SIZES | {"tie_word_embeddings": True}, head_dim=32),
    "llama 3": transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama linear": transformers.LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    ),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=None),
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": transformers.Qwen2Config(**SIZES),
    "qwen2 yarn": transformers.Qwen2Config(
        **SIZES,
        rope_parameters=YARN,
    ),
    "qwen2_moe": transformers.Qwen2MoeConfig(
        **SIZES, **EXPERTS, moe_intermediate_size=1408, shared_expert_intermediate_size=5632
    ),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=128),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **SIZES, **EXPERTS, head_dim=128, moe_intermediate_size=768, norm_topk_prob=True
    ),
    "gemma2": transformers.Gemma2Config(
        **SIZES | {"tie_word_embeddings": True}, head_dim=256, query_pre_attn_scalar=256, sliding_window=8
    ),
    "gemma": transformers.GemmaConfig(**TIED, head_dim=32),
    "gemma3_text": transformers.Gemma3TextConfig(
        **TIED | {"num_hidden_layers": 7},
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=8,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
        },
    ),
    "phi3": transformers.Phi3Config(**SIZES, pad_token_id=None, sliding_window=None),
    "phi3 longrope": transformers.Phi3Config(
        **SIZES,
        pad_token_id=None,
        partial_rotary_factor=0.75,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.25, 1.5, 1.75, 2.0],
            "long_factor": [1.5, 2.5, 4.0, 4.5, 5.0, 5.1],
        },
    ),
    "smollm3": transformers.SmolLM3Config(**SIZES | {"num_hidden_layers": 5}, pad_token_id=None),
    "granite": transformers.GraniteConfig(
        **SIZES,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.11,
        logits_scaling=6.0,
        attention_bias=True,
    ),
    "olmo2": transformers.Olmo2Config(**SIZES),
    "olmo3": transformers.Olmo3Config(
        **SIZES | {"num_hidden_layers": 5},
        sliding_window=7,
        rope_parameters={
            "full_attention": YARN | {"original_max_position_embeddings": 24},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    "seed_oss": transformers.SeedOssConfig(**SIZES, head_dim=32, attention_bias=True, attention_out_bias=False),
    "ministral3": transformers.Ministral3Config(
        **SIZES,
        head_dim=32,
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3},
    ),
    "ernie4_5": transformers.Ernie4_5Config(**TIED, head_dim=32),
    "glm4": transformers.Glm4Config(**SIZES, head_dim=32, pad_token_id=None),
    "stablelm": transformers.StableLmConfig(**SIZES, partial_rotary_factor=0.5, use_qkv_bias=True),
    "stablelm parallel": transformers.StableLmConfig(**SIZES, partial_rotary_factor=0.5, use_parallel_residual=True),
    "cohere2": transformers.Cohere2Config(**TIED | {"num_hidden_layers": 5}, sliding_window=7, logit_scale=0.3),
    "exaone4": transformers.Exaone4Config(
        **SIZES, sliding_window=None, layer_types=["full_attention"] * 2, rope_parameters=LLAMA3
    ),
    "exaone4 windows": transformers.Exaone4Config(
        **SIZES | {"num_hidden_layers": 64, "initializer_range": 0.1}, sliding_window=7, sliding_window_pattern=4
    ),
    "gpt_oss": transformers.GptOssConfig(**GPT_OSS, rope_parameters=YARN | {"truncate": False}),
    "deepseek_v2": transformers.DeepseekV2Config(
        **DEEPSEEK | {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
        q_lora_rank=48,
        n_routed_experts=4,
        topk_method="greedy",
        n_group=1,
        topk_group=1,
    ),
    "deepseek_v3": transformers.DeepseekV3Config(
        **DEEPSEEK | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
        q_lora_rank=48,
        n_routed_experts=8,
        n_group=4,
        topk_group=2,
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=64, n_layer=2, n_head=4, initializer_range=0.2, bos_token_id=0, eos_token_id=0
    ),
}
# transformers doesn't look for a Mixtral's experts in the file, nor for scalings of a Llama or a Qwen 2.
READ_BY_TRANSFORMERS = ("llama", "llama tied", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gpt2")
IDS = torch.arange(3, 60)[None]

Saved = tuple[dict[str, Any], dict[str, Tensor], Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """Config and tensors as on disk, and logits, of a seeded model of each family."""
    return {name: save(config, tmp_path_factory.mktemp("model")) for name, config in CONFIGS.items()}


def save(config: transformers.PretrainedConfig, directory: Path) -> Saved:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.normal_(0 if name.endswith("bias") else 1, 0.2)
    model.save_pretrained(directory)
    values = json.loads((directory / "config.json").read_text())
    return values, load_file(directory / "model.safetensors"), logits_of(model)


def logits_of(model: transformers.PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def write(path: Path, model: Saved, tokenizer: BPETokenizer, quantization: str = "f32", **changes: Any) -> Path:
    write_gguf_model(path, model[0] | changes, model[1], tokenizer, quantization=quantization)
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_read_is_the_model_that_was_written(
    name: str, saved: dict[str, Saved], tiny_tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.gguf", saved[name], tiny_tokenizer)
    _, tensors, logits = saved[name]
    read = {name: tensor.load() for name, tensor in read_tensors(file).items()}
    assert {name: tensor.shape for name, tensor in read.items()} == {name: t.shape for name, t in tensors.items()}
    for tensor_name, tensor in tensors.items():
        # One more and one less again is exact to a rounding.
        tolerance = 2.5e-7 if name.startswith("gemma") and tensor.ndim == 1 else 0.0
        assert torch.allclose(read[tensor_name], tensor, rtol=0, atol=tolerance), tensor_name
    directory = tmp_path / "again"
    directory.mkdir()
    # Some families assume an id of padding that is beyond a small vocabulary.
    (directory / "config.json").write_text(json.dumps({"pad_token_id": None} | read_config(file)))
    save_file(read, directory / "model.safetensors", metadata={"format": "pt"})
    again = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    assert (logits_of(again) - logits).abs().max() <= 1e-5


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_transformers_computes_the_same_from_the_file(
    name: str, saved: dict[str, Saved], tiny_tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with it alone")
    write(tmp_path / "a.gguf", saved[name], tiny_tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32).eval()
    assert (logits_of(model) - saved[name][2]).abs().max() <= 1e-5


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_values_are_stored_as_asked_and_norms_in_float32(
    quantization: str, saved: dict[str, Saved], tiny_tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    _, tensors, _ = saved["mixtral"]
    read = read_tensors(write(tmp_path / "a.gguf", saved["mixtral"], tiny_tokenizer, quantization))
    narrow = {"q6_k": "Q8_0", "q4_k": "Q5_0"}  # rows of 64 and 96 are no blocks of 256
    wanted = narrow.get(quantization, QUANTIZATIONS[quantization][0])
    types = {name: tensor.type_name for name, tensor in read.items()}
    assert types["model.norm.weight"] == types["model.layers.1.block_sparse_moe.gate.weight"] == "F32"
    assert types["model.layers.1.block_sparse_moe.experts.3.w2.weight"] == wanted
    assert types["model.embed_tokens.weight"] == types["model.layers.0.self_attn.q_proj.weight"] == wanted
    assert types["lm_head.weight"] == ("Q8_0" if quantization in ("q4_0", "q4_k") else wanted)
    # Half a step of each type, of the largest value.
    steps = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.005, "Q5_0": 0.07, "Q4_0": 0.13}
    step = steps[wanted]
    for name, tensor in tensors.items():
        assert (read[name].load(torch.float32) - tensor).abs().max() <= step * tensor.abs().max(), name


def test_a_tensor_whose_columns_are_no_blocks_is_in_half_precision(
    tiny_tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    model = save(transformers.LlamaConfig(**SIZES | {"intermediate_size": 40}), tmp_path)
    read = read_tensors(write(tmp_path / "a.gguf", model, tiny_tokenizer, "q8_0"))
    assert read["model.layers.0.mlp.down_proj.weight"].type_name == "F16"
    assert read["model.layers.0.mlp.up_proj.weight"].type_name == "Q8_0"


def test_the_file_is_as_llama_cpps_own_reader_wants_it(
    saved: dict[str, Saved], tiny_tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    reader = gguf.GGUFReader(write(tmp_path / "a.gguf", saved["llama 3"], tiny_tokenizer, "q4_0"))
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert values["llama.rope.freq_base"] == 500_000.0
    assert values["llama.attention.head_count_kv"] == 2
    assert values["llama.vocab_size"] == len(values["tokenizer.ggml.tokens"]) == VOCAB_SIZE
    assert values["tokenizer.chat_template"] == tiny_tokenizer.settings.chat_template
    names = [tensor.name for tensor in reader.tensors]
    assert len(set(names)) == len(names) == 1 + 3 + 2 * 9
    assert [tensor.tensor_type.name for tensor in reader.tensors if tensor.name == "rope_freqs.weight"] == ["F32"]
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)
    queries = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_q.weight")
    stored = torch.from_numpy(gguf.quants.dequantize(queries.data, queries.tensor_type))
    theirs = saved["llama 3"][1]["model.layers.0.self_attn.q_proj.weight"]
    # Of 16 rows of a head, rows 0 and 8 rotate together.
    assert (stored[1] - theirs[8]).abs().max() < 0.13 * theirs.abs().max()


def test_the_tokenizer_is_in_the_file(saved: dict[str, Saved], tiny_tokenizer: BPETokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", saved["llama"], tiny_tokenizer)
    again = BPETokenizer.from_pretrained(file)
    text = "Before we proceed any further, hear me speak. 1234 – é"
    assert again.encode(text) == tiny_tokenizer.encode(text)
    assert again.settings.chat_template == tiny_tokenizer.settings.chat_template
    assert again.eos_ids == tiny_tokenizer.eos_ids


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "family": (
        "llama",
        {"model_type": "llm_oxide"},
        "must be one of llama, mistral, .* in a GGUF file, got 'llm_oxide'",
    ),
    "activation": ("llama", {"hidden_act": "gelu"}, "`hidden_act` must be 'silu', got 'gelu'"),
    "two": (
        "llama",
        {"rms_norm_eps": None, "hidden_size": 0},
        r"`hidden_size` must be .* got 0\n.*`rms_norm_eps` must",
    ),
    "window": ("mistral", {"sliding_window": 16}, "hint: set `max_position_embeddings` to 16"),
    "window by default": ("qwen2", {"use_sliding_window": True}, "`use_sliding_window` must be False, got True"),
    "router": ("qwen3_moe", {"norm_topk_prob": None}, "`norm_topk_prob` must be True, got None"),
    "queries": (
        "gemma2",
        {"query_pre_attn_scalar": 224},
        "`query_pre_attn_scalar` must be 256 in a GGUF file, got 224",
    ),
    "soft cap": ("gemma2", {"final_logit_softcapping": None}, "`final_logit_softcapping` must be a positive float"),
    "scaling": ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "must be one of default, linear, llama3, yarn"),
    "no scaling": ("llama", {"rope_parameters": ["linear"]}, r"must be an object in config.json, got \['linear'\]"),
    "scaling's values": (
        "qwen2",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0}},
        "values of a yarn scaling must be among factor, .*, got mscale",
    ),
    "scaling's missing values": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        "`low_freq_factor` of a llama3 scaling is missing",
    ),
    "heads": (
        "llama",
        {"num_attention_heads": 8},
        r"q_proj.weight must have 8 heads of 16 rows, got the shape \[64, 64\]",
    ),
    "vocabulary": ("llama", {"vocab_size": 500}, r"must have the shape \[500, 64\], got \[400, 64\]"),
    "layers": ("llama", {"num_hidden_layers": 1}, r"unexpected model\.layers\.1\.input_layernorm\.weight"),
    "more layers": ("qwen2", {"num_hidden_layers": 3}, r"missing model\.layers\.2\.self_attn\.q_proj\.bias"),
    "experts": (
        "mixtral",
        {"num_local_experts": 5},
        r"missing model\.layers\.0\.block_sparse_moe\.experts\.4\.w1\.weight",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_such_a_file_cant_hold_is_named(
    case: str, saved: dict[str, Saved], tiny_tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    name, changes, message = REFUSED[case]
    if case == "heads":
        changes = changes | {"head_dim": 16}
    with pytest.raises(CheckpointError, match=message):
        write(tmp_path / "a.gguf", saved[name], tiny_tokenizer, **changes)
    assert list(tmp_path.iterdir()) == []


def test_tensors_of_other_dimensions_are_named(
    saved: dict[str, Saved], tiny_tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    config, tensors, logits = saved["llama"]
    changed = tensors | {"model.norm.weight": torch.ones(1, 64), "lm_head.weight": torch.tensor(1.0)}
    with pytest.raises(
        CheckpointError, match=r"(?s)norm.* must be a vector, got \[1, 64\].*must be a matrix, got \[\]"
    ):
        write(tmp_path / "a.gguf", (config, changed, logits), tiny_tokenizer)


@pytest.mark.parametrize(
    ("value", "quantization", "message"),
    [
        (float("nan"), "f32", "must be finite and at most 3.40282e.38 in F32, got nan"),
        (float("inf"), "q8_0", "must be finite and at most 65504 in Q8_0, got inf"),
        (70_000.0, "f16", "at most 65504 in F16, got 70000\n  hint: `bf16` and `f32` hold larger values"),
    ],
)
def test_values_that_would_be_lost_are_named_and_the_old_file_stays(
    value: float, quantization: str, message: str, saved: dict[str, Saved], tiny_tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    (tmp_path / "a.gguf").write_text("old")
    config, tensors, logits = saved["llama"]
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    changed = tensors | {name: tensors[name].clone() for name in names}
    for name in names:
        changed[name][3, 5] = value
    with pytest.raises(CheckpointError, match=message) as caught:
        write(tmp_path / "a.gguf", (config, changed, logits), tiny_tokenizer, quantization)
    assert all(name in str(caught.value) for name in names)
    assert [file.name for file in tmp_path.iterdir()] == ["a.gguf"]
    assert (tmp_path / "a.gguf").read_text() == "old"


def test_arguments_that_make_no_file_are_errors(
    saved: dict[str, Saved], tiny_tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="must be one of f32, f16, bf16, q8_0, q6_k, q4_k, q4_0, got 'q3'"):
        write(tmp_path / "a.gguf", saved["llama"], tiny_tokenizer, "q3")
    with pytest.raises(TokenizerError, match="stores only byte-level BPE, got a SimpleCharacterTokenizer"):
        write(tmp_path / "a.gguf", saved["llama"], SimpleCharacterTokenizer.train("abc"))
    config, tensors, logits = saved["llama"]
    small = tensors | {name: tensors[name][:300] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    with pytest.raises(TokenizerError, match="the tokenizer has 384 ids, the model 300"):
        write(tmp_path / "a.gguf", (config, small, logits), tiny_tokenizer, vocab_size=300)
    assert list(tmp_path.iterdir()) == []
