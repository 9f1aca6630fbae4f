"""Every family beside `transformers`: the same logits, the same files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from llm.checkpoint import atomic_directory, load_model, write_model
from llm.errors import CheckpointError
from llm.inference.kv_cache import KVCache
from llm.inference.runners.base import Step
from llm.inference.runners.cpu import KernelModelRunner
from llm.inference.runners.cpu_weights import obstacle
from llm.models import DecoderModel, ForwardContext, PagedCache, positions_of
from llm.models.families import FAMILIES, family_of

VOCABULARY = 101
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD_16 = SMALL | {"head_dim": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 24}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
FIVE = SMALL | {"num_hidden_layers": 5, "hidden_size": 64}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [1.5, 2.5, 4.0],
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 96,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK = SMALL | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": False,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SMALL),
    "llama tied with biases": (
        "llama",
        SMALL | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3": ("llama", SMALL | {"rope_parameters": LLAMA3}),
    "llama linear": ("llama", SMALL | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama dynamic": ("llama", SMALL | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "llama yarn": ("llama", SMALL | {"rope_parameters": YARN}),
    "mistral": ("mistral", SMALL | {"sliding_window": 7}),
    "mistral without window": ("mistral", SMALL | {"sliding_window": None}),
    "qwen2": ("qwen2", SMALL),
    "qwen2 sliding": ("qwen2", SMALL | WINDOW),
    "qwen2_moe": ("qwen2_moe", SMALL | EXPERTS | {"shared_expert_intermediate_size": 56, "mlp_only_layers": [1]}),
    "qwen3": ("qwen3", HEAD_16),
    "qwen3_moe": ("qwen3_moe", HEAD_16 | EXPERTS | {"norm_topk_prob": True, "decoder_sparse_step": 2}),
    "mixtral": ("mixtral", SMALL | {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "gpt2": ("gpt2", GPT2),
    "gemma2": ("gemma2", HEAD_16 | {"query_pre_attn_scalar": 24, "sliding_window": 8, "attn_logit_softcapping": 5.0}),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK),
    "deepseek_v2 lite": ("deepseek_v2", DEEPSEEK | {"q_lora_rank": None}),
    "deepseek_v3": (
        "deepseek_v3",
        DEEPSEEK | {"n_group": 3, "topk_group": 2, "norm_topk_prob": True, "rope_parameters": YARN | {"mscale": 1.0}},
    ),
    "gemma": ("gemma", HEAD_16),
    "gemma3_text": ("gemma3_text", FIVE | {"head_dim": 16, "query_pre_attn_scalar": 24, "layer_types": MIXED}),
    "gemma3_text scaled": (
        "gemma3_text",
        FIVE
        | {
            "head_dim": 16,
            "layer_types": MIXED,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
    ),
    "phi3": ("phi3", SMALL | {"sliding_window": 11}),
    "phi3 partial longrope": (
        "phi3",
        SMALL
        | {
            "original_max_position_embeddings": 8,
            "partial_rotary_factor": 0.5,
            "rope_parameters": LONGROPE,
            "tie_word_embeddings": True,
        },
    ),
    "smollm3": ("smollm3", FIVE | {"no_rope_layer_interval": 3}),
    "granite": (
        "granite",
        SMALL
        | {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.11,
            "logits_scaling": 6.0,
            "attention_bias": True,
        },
    ),
    "olmo2": ("olmo2", SMALL),
    "olmo3": ("olmo3", FIVE | {"sliding_window": 7, "rope_parameters": {"full_attention": YARN}}),
    "seed_oss": ("seed_oss", SMALL | {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True}),
    "ministral3": (
        "ministral3",
        HEAD_16 | {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 8}},
    ),
    "ernie4_5": ("ernie4_5", HEAD_16 | {"use_bias": True}),
    "glm4": ("glm4", HEAD_16),
    "stablelm": ("stablelm", SMALL | {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "stablelm parallel": ("stablelm", SMALL | {"partial_rotary_factor": 0.5, "use_parallel_residual": True}),
    "cohere2": ("cohere2", FIVE | {"sliding_window": 7, "logit_scale": 0.3}),
    "exaone4": ("exaone4", FIVE | {"sliding_window": 7, "sliding_window_pattern": 3}),
    "exaone4 without window": ("exaone4", SMALL | {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "gpt_oss": (
        "gpt_oss",
        HEAD_16
        | {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 7,
            "swiglu_limit": 1.5,
            "rope_parameters": YARN | {"truncate": False},
        },
    ),
}
LENGTH = 40


@pytest.fixture(scope="module", params=MODELS)
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A random model of theirs and its directory, in several files."""
    model_type, values = MODELS[request.param]
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(model_type, **values)
    config._attn_implementation = "eager"  # capped scores need it
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():  # norms and biases start alike: move them so that a mix-up shows
        if parameter.dim() < 2:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif name.endswith("gate.weight"):
            parameter.data.normal_(0, 1.0)
    directory = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(directory, max_shard_size="100KB")
    return model, directory


def their_logits(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(token_ids).logits
    return logits


def our_decoder(directory: Path) -> DecoderModel:
    model = load_model(directory)
    assert isinstance(model, DecoderModel)
    return model


@torch.no_grad()
def test_logits_equal_transformers(theirs: tuple[Any, Path]) -> None:
    model, directory = theirs
    token_ids = torch.randint(0, VOCABULARY, (3, LENGTH))
    wanted = their_logits(model, token_ids).flatten(0, 1)
    lengths = (LENGTH,) * 3
    ours = our_decoder(directory)(token_ids.flatten(), positions_of(lengths), ForwardContext.for_sequences(lengths))
    assert wanted.std() > 0.1
    assert (ours - wanted).abs().max() <= 1e-4


@torch.no_grad()
def test_token_by_token_equals_transformers(theirs: tuple[Any, Path]) -> None:
    model, directory = theirs
    token_ids = torch.randint(0, VOCABULARY, (24,))
    wanted = their_logits(model, token_ids[None])[0]
    ours = our_decoder(directory)
    blocks = torch.tensor([[5, 1, 4, 0, 3, 6]], dtype=torch.int32)
    cache = KVCache.allocate(ours.config, 7, 4, torch.float32, torch.device("cpu"))
    rows = []
    for start, stop in [(0, 11), *((place, place + 1) for place in range(11, 24))]:
        positions = torch.arange(start, stop)
        slots = blocks[0, positions // 4].long() * 4 + positions % 4
        paged = PagedCache(cache.keys, cache.values, slots, blocks)
        rows.append(ours(token_ids[positions], positions, ForwardContext((stop - start,), (stop,), cache=paged)))
    assert (torch.cat(rows) - wanted).abs().max() <= 1e-4


@torch.no_grad()
def test_kernels_equal_transformers(theirs: tuple[Any, Path]) -> None:
    """A prompt in one step, then token by token, beside another request with a prompt of its own."""
    model, directory = theirs
    ours = our_decoder(directory)
    reason = obstacle(ours.config, torch.float32, CPU)
    if reason is not None:
        assert (ours.config.attention, reason) == ("mla", "attention 'mla'")
        return
    token_ids = torch.randint(0, VOCABULARY, (2, 24))
    wanted = their_logits(model, token_ids)
    runner = KernelModelRunner(ours, KVCache.allocate(ours.config, 12, 4, torch.float32, CPU), num_threads=2)
    tables = np.array([[5, 1, 4, 0, 3, 6], [2, 11, 7, 10, 8, 9]], dtype=np.int32)
    rows: list[list[torch.Tensor]] = [[], []]
    for start, stop in [(0, 11), *((place, place + 1) for place in range(11, 24))]:
        step = Step.of([(start, stop)] * 2, tables, np.ascontiguousarray(token_ids[:, start:stop]).ravel(), 4)
        step.logits_indices = np.arange(2 * (stop - start))
        for row, logits in zip(rows, runner.run(step).clone().chunk(2), strict=True):
            row.append(logits)
    assert (torch.stack([torch.cat(row) for row in rows]) - wanted).abs().max() <= 1e-4


@torch.no_grad()
def test_sequences_side_by_side_equal_padded_ones_of_transformers(theirs: tuple[Any, Path]) -> None:
    model, directory = theirs
    lengths = (5, 17, 30)
    rows = [torch.randint(3, VOCABULARY, (length,)) for length in lengths]
    padded = torch.stack([torch.nn.functional.pad(row, (0, 30 - len(row))) for row in rows])
    mask = torch.stack([torch.arange(30) < length for length in lengths]).long()
    wanted = model(padded, attention_mask=mask).logits
    ours = our_decoder(directory)(torch.cat(rows), positions_of(lengths), ForwardContext.for_sequences(lengths))
    for part, whole, length in zip(ours.split(lengths), wanted, lengths, strict=True):
        assert (part - whole[:length]).abs().max() <= 1e-4


@torch.no_grad()
def test_what_is_written_here_opens_there_with_equal_parameters(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    model, directory = theirs
    with atomic_directory(tmp_path / "ours") as temporary:
        write_model(temporary, our_decoder(directory), None)
    values = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert values["model_type"] == model.config.model_type
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    before: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        before |= load_file(file)
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert after.keys() == {name for name in before if "inv_freq" not in name}
    assert all(torch.equal(after[name], before[name]) for name in after)
    token_ids = torch.randint(0, VOCABULARY, (2, LENGTH))
    # Their own logits change with how memory is aligned.
    assert (their_logits(back, token_ids) - their_logits(model, token_ids)).abs().max() <= 1e-5


@pytest.mark.long
@torch.no_grad()
def test_large_weights_are_written_in_several_files(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    model, directory = theirs
    with atomic_directory(tmp_path / "ours") as temporary:
        write_model(temporary, our_decoder(directory), None, max_shard_bytes=60_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    token_ids = torch.randint(0, VOCABULARY, (2, 9))
    # Their own logits change with how memory is aligned.
    assert (their_logits(back, token_ids) - their_logits(model, token_ids)).abs().max() <= 1e-5
    ours, again = our_decoder(directory).state_dict(), our_decoder(tmp_path / "ours").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.items())


def test_every_family_is_tried() -> None:
    assert {model_type for model_type, _ in MODELS.values()} == FAMILIES.keys() - {"llm_oxide"}


def test_a_family_that_cannot_hold_a_model_says_what(theirs: tuple[Any, Path]) -> None:
    _, directory = theirs
    config = our_decoder(directory).config
    assert family_of(config).difference(config) == []
    if config.attention == "mla":
        assert any("attention = 'mla'" in line for line in FAMILIES["llama"].difference(config))


@torch.no_grad()
def test_older_checkpoints_open_too(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    model, directory = theirs
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    on_disk: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        on_disk |= load_file(file)
    torch.save({f"module.{name}": tensor for name, tensor in on_disk.items()}, tmp_path / "pytorch_model.bin")
    token_ids = torch.randint(0, VOCABULARY, (12,))
    ours = our_decoder(tmp_path)(token_ids, positions_of((12,)), ForwardContext.for_sequences((12,)))
    assert (ours - their_logits(model, token_ids[None])[0]).abs().max() <= 1e-4


def message_for(model_type: str, values: dict[str, Any]) -> str | None:
    """What reading these values complains of; any other error than ours is a failure."""
    try:
        FAMILIES[model_type].config_from(values)
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - {"llm_oxide"}))
def test_configs_that_lack_or_twist_a_value_end_in_one_error(model_type: str) -> None:
    whole = MODELS[model_type][1]
    assert message_for(model_type, whole) is None
    for key in whole:
        for twisted in ("much", [], {"a": 1}, -1, None):
            message = message_for(model_type, {**whole, key: twisted})
            assert message is None or "config.json" in message
    sizes = ("n_embd", "n_layer", "n_head") if model_type == "gpt2" else ("hidden_size", "num_hidden_layers")
    for key in ("vocab_size", *sizes):
        assert message_for(model_type, {**whole, key: None}) == f"config.json lacks {key}"
        assert "config.json" in (message_for(model_type, {**whole, key: "much"}) or "")
