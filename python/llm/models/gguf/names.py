"""Maps tensor names and layouts of GGUF files to Hugging Face's.

Source: ggml-org/llama.cpp `gguf-py/gguf/tensor_mapping.py` for names; `conversion/` there (`convert_hf_to_gguf.py`),
classes LlamaModel, GPT2Model, Gemma2Model, Qwen2Model, Qwen2MoeModel and those of the other families, for layouts.
"""

import re
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

from torch import Tensor

from llm.errors import CheckpointError

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


class Layout(Enum):
    """Layout of a tensor in the file, compared with Hugging Face's."""

    SAME = auto()
    # Rows of each head are in pairs that rotate together, (0, half), (1, half + 1) …, rather than in halves.
    PAIRED_ROWS = auto()
    TRANSPOSED = auto()
    # Norms that multiply by 1 + weight are stored as the sum.
    PLUS_ONE = auto()
    # One dimension less: (columns,) for (1, columns).
    FLAT = auto()


class Family(NamedTuple):
    """Maps the names of one `model_type`, without layer numbers and `.weight` or `.bias`.

    Attributes:
        architecture: llama.cpp's name of the family.
        layer_prefix: Hugging Face's prefix before the layer number.
        top: Maps GGUF's names to Hugging Face's outside layers.
        layers: Maps GGUF's names to Hugging Face's within a layer.
        experts: Maps GGUF's names of stacked experts to Hugging Face's, with `{}` for the expert's number.
        layouts: Maps GGUF's names to layouts that differ from Hugging Face's.
        biased: GGUF's names that must have a `.bias` too.
    """

    architecture: str
    layer_prefix: str
    top: Mapping[str, str]
    layers: Mapping[str, str]
    experts: Mapping[str, str]
    layouts: Mapping[str, Layout]
    biased: frozenset[str] = frozenset()

    def layout(self, name: str) -> Layout:
        """Returns the layout of a tensor in the file."""
        base, _, leaf = re.sub(r"^blk\.\d+\.", "", name).rpartition(".")
        layout = self.layouts.get(base, Layout.SAME)
        return Layout.SAME if layout is Layout.TRANSPOSED and leaf == "bias" else layout


_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_ROUTER = {"ffn_gate_inp": "mlp.gate"}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_MIXTRAL_EXPERTS = {
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
_QWEN_EXPERTS = {
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_GEMMA2_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Norms of each part's output instead of its input.
_INNER_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_PROJECTIONS = {name: theirs for name, theirs in _ATTENTION.items() if not name.endswith("_norm")}
_FUSED_MLP = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
_GPT2_TOP = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_LAYERS = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_PAIRED = {"attn_q": Layout.PAIRED_ROWS, "attn_k": Layout.PAIRED_ROWS}
_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_PREFIX = "model.layers"
_LLAMA = Family("llama", _PREFIX, _TOP, _ATTENTION | _MLP, {}, _PAIRED)
_OLMO2 = Family("olmo2", _PREFIX, _TOP, _PROJECTIONS | _HEAD_NORMS | _INNER_NORMS | _MLP, {}, {})

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": Family(
        "llama", _PREFIX, _TOP, _ATTENTION | {"ffn_gate_inp": "block_sparse_moe.gate"}, _MIXTRAL_EXPERTS, _PAIRED
    ),
    "qwen2": Family("qwen2", _PREFIX, _TOP, _ATTENTION | _MLP, {}, {}, _QKV),
    "qwen2_moe": Family(
        "qwen2moe",
        _PREFIX,
        _TOP,
        _ATTENTION | _ROUTER | _SHARED_EXPERT,
        _QWEN_EXPERTS,
        {"ffn_gate_inp_shexp": Layout.FLAT},
        _QKV,
    ),
    "qwen3": Family("qwen3", _PREFIX, _TOP, _ATTENTION | _HEAD_NORMS | _MLP, {}, {}),
    "qwen3_moe": Family("qwen3moe", _PREFIX, _TOP, _ATTENTION | _HEAD_NORMS | _ROUTER, _QWEN_EXPERTS, {}),
    "gemma2": Family(
        "gemma2",
        _PREFIX,
        _TOP,
        _ATTENTION | _MLP | _GEMMA2_NORMS,
        {},
        dict.fromkeys(("output_norm", *_GEMMA2_NORMS), Layout.PLUS_ONE),
    ),
    "gemma": Family(
        "gemma",
        _PREFIX,
        _TOP,
        _ATTENTION | _MLP,
        {},
        dict.fromkeys(("output_norm", "attn_norm", "ffn_norm"), Layout.PLUS_ONE),
    ),
    "gemma3_text": Family(
        "gemma3",
        _PREFIX,
        _TOP,
        _ATTENTION | _HEAD_NORMS | _MLP | _GEMMA2_NORMS,
        {},
        dict.fromkeys(("output_norm", *_HEAD_NORMS, *_GEMMA2_NORMS), Layout.PLUS_ONE),
    ),
    "phi3": Family(
        "phi3",
        _PREFIX,
        _TOP,
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            **_FUSED_MLP,
        },
        {},
        {},
    ),
    "smollm3": _LLAMA._replace(architecture="smollm3"),
    "granite": _LLAMA._replace(architecture="granite"),
    "ministral3": _LLAMA._replace(architecture="mistral3"),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "exaone4": _OLMO2._replace(architecture="exaone4"),
    "seed_oss": Family(
        "seed_oss",
        _PREFIX,
        _TOP,
        {("post_attention_norm" if name == "ffn_norm" else name): theirs for name, theirs in _ATTENTION.items()} | _MLP,
        {},
        {},
    ),
    "ernie4_5": _LLAMA._replace(architecture="ernie4_5", layouts={}),
    "glm4": Family(
        "glm4",
        _PREFIX,
        _TOP,
        _ATTENTION
        | _FUSED_MLP
        | {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"},
        {},
        {},
    ),
    "stablelm": Family(
        "stablelm", _PREFIX, _TOP, _ATTENTION | _MLP, {}, {}, frozenset({"output_norm", "attn_norm", "ffn_norm"})
    ),
    "cohere2": Family("cohere2", _PREFIX, _TOP, {"attn_norm": "input_layernorm"} | _PROJECTIONS | _MLP, {}, {}),
    "gpt2": Family(
        "gpt2",
        "transformer.h",
        _GPT2_TOP,
        _GPT2_LAYERS,
        {},
        dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), Layout.TRANSPOSED),
        frozenset({"output_norm", *_GPT2_LAYERS}),
    ),
}
ARCHITECTURES = tuple(dict.fromkeys(family.architecture for family in FAMILIES.values()))


def family_of(config: Mapping[str, Any]) -> Family:
    """Returns the family of a `config.json`.

    Raises:
        CheckpointError: A family without support for GGUF files.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"`model_type` must be one of {', '.join(FAMILIES)} in a GGUF file, got {model_type!r}")
    family = FAMILIES[model_type]
    if model_type == "stablelm" and config.get("use_parallel_residual"):  # both parts read the same norm
        layers = {name: theirs for name, theirs in family.layers.items() if name != "ffn_norm"}
        return family._replace(layers=layers, biased=family.biased - {"ffn_norm"})
    return family


def to_hugging_face(name: str, family: Family, num_experts: int) -> list[str] | None:
    """Returns Hugging Face's names of a tensor in the file, one per stacked expert; None if there are none."""
    base, _, leaf = name.rpartition(".")
    if base in family.top:
        return [f"{family.top[base]}.{leaf}"]
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", base)
    if match is None:
        return None
    layer, inner = match.groups()
    prefix = f"{family.layer_prefix}.{layer}."
    if inner in family.experts:
        return [f"{prefix}{family.experts[inner].format(expert)}.{leaf}" for expert in range(num_experts)]
    return [f"{prefix}{family.layers[inner]}.{leaf}"] if inner in family.layers else None


def is_stacked(name: str, family: Family) -> bool:
    """Whether a tensor in the file stacks all experts of a layer."""
    return re.sub(r"^blk\.\d+\.", "", name).rpartition(".")[0] in family.experts


def expected_names(family: Family, num_layers: int) -> list[str]:
    """Returns the tensors that a file must have, except the output projection, in the order to write them."""
    outside = [name for name in family.top if name != "output"]
    blocks = [f"blk.{layer}.{name}" for layer in range(num_layers) for name in (*family.layers, *family.experts)]
    bases = [*outside, *blocks]
    biased = [base for base in bases if base.rpartition(".")[2] in family.biased]
    return [f"{base}.weight" for base in bases] + [f"{base}.bias" for base in biased]


def optional_names(family: Family, num_layers: int) -> list[str]:
    """Returns the biases that a model of this family may have."""
    biases = [name for name in family.layers if name not in family.biased and name.removesuffix("_norm") == name]
    return [f"blk.{layer}.{name}.bias" for layer in range(num_layers) for name in biases if "inp" not in name]


def pair_rows(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of each head from halves to pairs; input and result have shape (heads · head_dim, ...)."""
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])  # (H, 2, D / 2, ...)
    return halves.transpose(1, 2).reshape(tensor.shape)
