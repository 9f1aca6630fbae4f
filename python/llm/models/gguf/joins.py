"""Describes tensors of Hugging Face's that a GGUF file has in parts, or in a shape of its own.

Source: ggml-org/llama.cpp `conversion/gpt_oss.py` and `conversion/deepseek.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

Config: TypeAlias = Mapping[str, Any]
Shape: TypeAlias = tuple[int, ...]


class Join(NamedTuple):
    """A tensor of Hugging Face's within a layer and its parts in the file.

    Attributes:
        parts: GGUF's names within a layer, with `.weight` or `.bias`.
        shape: Returns Hugging Face's shape for a `config.json`.
        part_shape: Returns the file's shape of the part of this number.
        part: Returns the view of Hugging Face's tensor that is a part of this number, in the file's shape.
        in_dense: Whether layers without experts have the tensor, too.
    """

    parts: tuple[str, ...]
    shape: Callable[[Config], Shape]
    part_shape: Callable[[int, Config], Shape]
    part: Callable[[Tensor, int, Config], Tensor]
    in_dense: bool = True


def in_turns(*parts: str, shape: Callable[[Config], Shape], in_dense: bool = True) -> Join:
    """Returns a join whose last dimension the parts take in turns; the file has the matrices of a stack transposed."""

    def part_shape(idx: int, config: Config) -> Shape:
        del idx
        *rest, last = shape(config)
        width = last // len(parts)
        return (rest[0], width, rest[1]) if len(rest) == 2 else (*rest, width)

    def part(whole: Tensor, idx: int, config: Config) -> Tensor:
        del config
        own = whole.reshape(*whole.shape[:-1], -1, len(parts))[..., idx]
        return own.transpose(1, 2) if own.dim() == 3 else own

    return Join(parts, shape, part_shape, part, in_dense)


def _expansion_shape(config: Config) -> Shape:
    width = config["qk_nope_head_dim"] + config["v_head_dim"]
    return config["num_attention_heads"] * width, config["kv_lora_rank"]


def _expansion_part_shape(idx: int, config: Config) -> Shape:
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    return (heads, config["v_head_dim"], rank) if idx else (heads, rank, config["qk_nope_head_dim"])


def _expansion_part(whole: Tensor, idx: int, config: Config) -> Tensor:
    heads = whole.reshape(config["num_attention_heads"], -1, whole.shape[1])  # (H, N + V, R)
    plain = config["qk_nope_head_dim"]
    return heads[:, plain:] if idx else heads[:, :plain].transpose(1, 2)


def _experts(*widths: str) -> Callable[[Config], Shape]:
    return lambda config: (config["num_local_experts"], *(config[width] for width in widths))


def _gate_up(*widths: str) -> Callable[[Config], Shape]:
    sizes = _experts(*widths, "intermediate_size")
    return lambda config: (*sizes(config)[:-1], 2 * config["intermediate_size"])


GPT_OSS: Mapping[str, Join] = {
    "self_attn.sinks": in_turns("attn_sinks.weight", shape=lambda config: (config["num_attention_heads"],)),
    "mlp.experts.gate_up_proj": in_turns("ffn_gate_exps.weight", "ffn_up_exps.weight", shape=_gate_up("hidden_size")),
    "mlp.experts.gate_up_proj_bias": in_turns("ffn_gate_exps.bias", "ffn_up_exps.bias", shape=_gate_up()),
    "mlp.experts.down_proj": in_turns("ffn_down_exps.weight", shape=_experts("intermediate_size", "hidden_size")),
    "mlp.experts.down_proj_bias": in_turns("ffn_down_exps.bias", shape=_experts("hidden_size")),
}
# The expansion of compressed vectors, by which llama.cpp multiplies queries (transposed) and the mix of values.
DEEPSEEK_V2: Mapping[str, Join] = {
    "self_attn.kv_b_proj.weight": Join(
        ("attn_k_b.weight", "attn_v_b.weight"), _expansion_shape, _expansion_part_shape, _expansion_part
    ),
}
DEEPSEEK_V3: Mapping[str, Join] = {
    **DEEPSEEK_V2,
    "mlp.gate.e_score_correction_bias": in_turns(
        "exp_probs_b.bias", shape=lambda config: (config["n_routed_experts"],), in_dense=False
    ),
}
