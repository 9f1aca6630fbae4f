"""Maps tensor names and layouts of GGUF files to Hugging Face's.

Source: ggml-org/llama.cpp `gguf-py/gguf/tensor_mapping.py` for names; `conversion/` there (`convert_hf_to_gguf.py`),
classes LlamaModel, GPT2Model, Gemma2Model, Qwen2Model, Qwen2MoeModel and those of the other families, for layouts.
"""

import re
from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from llm.errors import CheckpointError
from llm.models.gguf.joins import DEEPSEEK_V2, DEEPSEEK_V3, GPT_OSS, Join

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


class JoinPlace(NamedTuple):
    """A tensor in the file that is a part of Hugging Face's.

    Attributes:
        whole: Hugging Face's name.
        names: GGUF's names of all parts.
        idx: The number of this part.
        join: Describes the parts.
    """

    whole: str
    names: tuple[str, ...]
    idx: int
    join: Join


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
        joins: Maps Hugging Face's names to their parts in the file.
        num_dense: Number of layers, from the first, without experts.
        dense: Maps GGUF's names to Hugging Face's in layers without experts alone.
        sparse: Maps GGUF's names to Hugging Face's in layers with experts alone.
        older: Maps GGUF's names to Hugging Face's that only older files have.
    """

    architecture: str
    layer_prefix: str
    top: Mapping[str, str]
    layers: Mapping[str, str]
    experts: Mapping[str, str]
    layouts: Mapping[str, Layout]
    biased: frozenset[str] = frozenset()
    joins: Mapping[str, Join] = MappingProxyType({})
    num_dense: int = 0
    dense: Mapping[str, str] = MappingProxyType({})
    sparse: Mapping[str, str] = MappingProxyType({})
    older: Mapping[str, str] = MappingProxyType({})

    def join_of(self, name: str) -> JoinPlace | None:
        """Returns what a tensor in the file is a part of; None if it is a whole one."""
        match = re.fullmatch(r"(blk\.(\d+)\.)(.+)", name)
        if match is None:
            return None
        for whole, join in self.joins.items():
            if match[3] in join.parts:
                names = tuple(match[1] + part for part in join.parts)
                return JoinPlace(f"{self.layer_prefix}.{match[2]}.{whole}", names, join.parts.index(match[3]), join)
        return None

    def names_in(self, layer: int) -> tuple[str, ...]:
        """Returns the tensors of a layer that the file must have, except biases and parts."""
        if layer < self.num_dense:
            return (*self.layers, *self.dense)
        return (*self.layers, *self.sparse, *self.experts)

    def parts_in(self, layer: int) -> list[str]:
        """Returns the parts that the file must have in a layer, with `.weight` or `.bias`."""
        joins = [join for join in self.joins.values() if join.in_dense or layer >= self.num_dense]
        return [part for join in joins for part in join.parts]

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
_LATENT = {
    "attn_norm": "input_layernorm",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_QUERY = {"attn_q": "self_attn.q_proj"}
_LATENT_QUERY = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
}
_SHARED_EXPERTS = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
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
_DEEPSEEK_V2 = Family(
    "deepseek2",
    _PREFIX,
    _TOP,
    _LATENT,
    _QWEN_EXPERTS,
    {},
    joins=DEEPSEEK_V2,
    dense=_MLP,
    sparse=_ROUTER | _SHARED_EXPERTS,
    older={"attn_kv_b": "self_attn.kv_b_proj"},
)
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
    "gpt_oss": Family(
        "gpt-oss",
        _PREFIX,
        _TOP,
        {("post_attention_norm" if name == "ffn_norm" else name): theirs for name, theirs in _ATTENTION.items()}
        | {"ffn_gate_inp": "mlp.router"},
        {},
        {},
        frozenset({"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp"}),
        GPT_OSS,
    ),
    "deepseek_v2": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V2._replace(joins=DEEPSEEK_V3),
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
    if family.dense:
        layers = {**family.layers, **(_LATENT_QUERY if config.get("q_lora_rank") else _QUERY)}
        return family._replace(layers=layers, num_dense=config.get("first_k_dense_replace", 0))
    return family


def to_hugging_face(name: str, family: Family, num_experts: int) -> list[str] | None:
    """Returns Hugging Face's names of a tensor in the file, one per stacked expert; None if there are none."""
    base, _, leaf = name.rpartition(".")
    if base in family.top:
        return [f"{family.top[base]}.{leaf}"]
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", base)
    if match is None:
        return None
    place = family.join_of(name)
    if place is not None:
        return [place.whole]
    layer, inner = match.groups()
    prefix = f"{family.layer_prefix}.{layer}."
    if inner in family.experts:
        return [f"{prefix}{family.experts[inner].format(expert)}.{leaf}" for expert in range(num_experts)]
    known = {**family.layers, **family.dense, **family.sparse, **family.older}
    return [f"{prefix}{known[inner]}.{leaf}"] if inner in known else None


def is_stacked(name: str, family: Family) -> bool:
    """Whether a tensor in the file stacks all experts of a layer."""
    return re.sub(r"^blk\.\d+\.", "", name).rpartition(".")[0] in family.experts


def expected_names(family: Family, num_layers: int) -> list[str]:
    """Returns the tensors that a file must have, except the output projection, in the order to write them."""
    outside = [name for name in family.top if name != "output"]
    blocks = [f"blk.{layer}.{name}" for layer in range(num_layers) for name in family.names_in(layer)]
    bases = [*outside, *blocks]
    biased = [base for base in bases if base.rpartition(".")[2] in family.biased]
    parts = [f"blk.{layer}.{part}" for layer in range(num_layers) for part in family.parts_in(layer)]
    return [f"{base}.weight" for base in bases] + [f"{base}.bias" for base in biased] + parts


def optional_names(family: Family, num_layers: int) -> list[str]:
    """Returns the biases that a model of this family may have."""
    biases = [name for name in family.layers if name not in family.biased and name.removesuffix("_norm") == name]
    return [f"blk.{layer}.{name}.bias" for layer in range(num_layers) for name in biases if "inp" not in name]


def pair_rows(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of each head from halves to pairs; input and result have shape (heads · head_dim, ...)."""
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])  # (H, 2, D / 2, ...)
    return halves.transpose(1, 2).reshape(tensor.shape)
