"""Derives values of a model's config from the tensors of its GGUF file."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from llm.models.gguf.config import HyperParameters
from llm.models.gguf.types import TYPES_BY_ID
from llm.tokenization.readers.gguf_file import TensorEntry

_Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

# Values that files may omit, with the tensor that has as many rows.
_WIDTHS = {
    "moe_intermediate_size": ("blk.0.ffn_gate_exps.weight", ("qwen2_moe", "qwen3_moe")),
    "shared_expert_intermediate_size": ("blk.0.ffn_gate_shexp.weight", ("qwen2_moe",)),
}


def values_from_tensors(
    values: Mapping[str, Any], tensors: Sequence[TensorEntry], hyper: HyperParameters
) -> dict[str, Any]:
    """Returns values of `config.json` that only the tensors show, and adds contradictions to `hyper.problems`."""
    shapes = {entry.name: entry.shape for entry in tensors}
    embedding = shapes.get("token_embd.weight", ())
    if len(embedding) != 2:
        hyper.problems.append(f"tensor token_embd.weight must be there with 2 dimensions, got {list(embedding)}")
        return {}
    _check(values, shapes, hyper)
    return {
        "vocab_size": embedding[0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "dtype": _dtype(tensors),
        **_biases(values["model_type"], shapes),
        **_widths(values, shapes),
    }


def _check(values: Mapping[str, Any], shapes: _Shapes, hyper: HyperParameters) -> None:
    vocab_size, hidden_size = shapes["token_embd.weight"]
    layers = [int(match.group(1)) for name in shapes if (match := re.match(r"blk\.([0-9]{1,9})\.", name))]
    claims = {
        "embedding_length": (values.get("hidden_size", values.get("n_embd")), hidden_size),
        "block_count": (values.get("num_hidden_layers", values.get("n_layer")), max(layers, default=-1) + 1),
        "vocab_size": (hyper.number("vocab_size", int, vocab_size), vocab_size),
    }
    for key, (claimed, found) in claims.items():
        if claimed != found:
            hyper.problems.append(f"`{hyper.architecture}.{key}` is {claimed}, by the tensors it is {found}")


def _dtype(tensors: Sequence[TensorEntry]) -> str:
    """Returns the type of most values; float32 for quantised ones."""
    counts: Counter[str] = Counter()
    for entry in tensors:
        counts[str(TYPES_BY_ID[entry.type_id].dtype).removeprefix("torch.")] += entry.num_values
    return counts.most_common(1)[0][0]


def _biases(model_type: str, shapes: _Shapes) -> dict[str, bool]:
    found = {}
    if model_type in ("llama", "qwen3", "qwen3_moe", "granite", "seed_oss", "glm4"):
        found["attention_bias"] = "blk.0.attn_q.bias" in shapes
    if model_type in ("llama", "granite"):
        found["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    if model_type == "stablelm":
        found["use_qkv_bias"] = "blk.0.attn_q.bias" in shapes
        found["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in shapes
    return found


def _widths(values: Mapping[str, Any], shapes: _Shapes) -> dict[str, int]:
    return {
        key: shapes[name][-2]
        for key, (name, model_types) in _WIDTHS.items()
        if values["model_type"] in model_types and key not in values and len(shapes.get(name, ())) > 1
    }
