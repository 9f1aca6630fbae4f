"""Names of tensors in GGUF files and at Hugging Face, and how the same values are laid out in each.

Source: ggml-org/llama.cpp `gguf-py/gguf/tensor_mapping.py` for names; `conversion/` there (`convert_hf_to_gguf.py`),
classes LlamaModel, GPT2Model, Gemma2Model, Qwen2Model, Qwen2MoeModel, for layouts.
"""

import re
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

from torch import Tensor

from llm.errors import CheckpointError

ROPE_FREQS = "rope_freqs.weight"


class Layout(Enum):
    """How a tensor in the file differs from Hugging Face's."""

    SAME = auto()
    # Rows of each head are in pairs that rotate together, (0, half), (1, half + 1) …, rather than in halves.
    PAIRED_ROWS = auto()
    TRANSPOSED = auto()
    # Norms that multiply by 1 + weight hold the sum.
    PLUS_ONE = auto()
    # One row less: (columns,) for (1, columns).
    FLAT = auto()


class Family(NamedTuple):
    """Names of one `model_type`, without numbers of layers and `.weight` or `.bias`.

    Attributes:
        architecture: llama.cpp's name of it.
        layer_prefix: Before the number of the layer, at Hugging Face.
        top: GGUF's name to Hugging Face's, outside layers.
        layers: The same within a layer.
        experts: The same for tensors that stack all experts; `{}` stands for the number of one.
        layouts: By GGUF's name, those that are not the same.
        biased: GGUF's names of which there must be a `.bias` too.
    """

    architecture: str
    layer_prefix: str
    top: Mapping[str, str]
    layers: Mapping[str, str]
    experts: Mapping[str, str]
    layouts: Mapping[str, Layout]
    biased: frozenset[str] = frozenset()

    def layout(self, name: str) -> Layout:
        """The layout of a tensor of the file."""
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
    """The family of a `config.json`.

    Raises:
        CheckpointError: GGUF files of it are not supported.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"`model_type` must be one of {', '.join(FAMILIES)} in a GGUF file, got {model_type!r}")
    return FAMILIES[model_type]


def to_hugging_face(name: str, family: Family, num_experts: int) -> list[str] | None:
    """Hugging Face's names of a tensor of the file, one for each expert where it stacks them; None if it has none."""
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
    """Whether a tensor of the file stacks all experts of a layer."""
    return re.sub(r"^blk\.\d+\.", "", name).rpartition(".")[0] in family.experts


def expected_names(family: Family, num_layers: int) -> list[str]:
    """The tensors that a file of this family must have, but for the output projection; in the order to write them."""
    outside = [name for name in family.top if name != "output"]
    blocks = [f"blk.{layer}.{name}" for layer in range(num_layers) for name in (*family.layers, *family.experts)]
    bases = [*outside, *blocks]
    biased = [base for base in bases if base.rpartition(".")[2] in family.biased]
    return [f"{base}.weight" for base in bases] + [f"{base}.bias" for base in biased]


def optional_names(family: Family, num_layers: int) -> list[str]:
    """Biases that a model of this family may have."""
    biases = [name for name in family.layers if name not in family.biased and name.removesuffix("_norm") == name]
    return [f"blk.{layer}.{name}.bias" for layer in range(num_layers) for name in biases if "inp" not in name]


def pair_rows(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from halves to pairs. Shape (heads · head_dim, ...), as the result."""
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])  # (H, 2, D / 2, ...)
    return halves.transpose(1, 2).reshape(tensor.shape)
