"""Facts about a checkpoint, in words."""

import math
import os
from collections import Counter
from collections.abc import Mapping

import torch

from llm._rust import instruction_sets, packed_bytes
from llm.checkpoint import DTYPES, Checkpoint, read_checkpoint
from llm.errors import CheckpointError
from llm.inference.runners.cpu_weights import obstacle
from llm.models import cache_widths
from llm.models.costs import (
    flops_per_token,
    kv_bytes_per_token,
    num_active_parameters,
    num_multiplied_parameters,
    num_parameters,
)
from llm.models.families import family_named, family_of
from llm.models.gguf import read_tensors
from llm.models.gguf.lazy import JoinedTensor, LazyTensor
from llm.models.gguf.types import TYPES
from llm.models.hf import agreed, own_dtype
from llm.models.layers.packed import PackedPart
from llm.models.packing import is_quantised, packable_in, parts_of
from llm.models.quantised import QuantisedTensor, open_weights
from llm.models.quantised.codes import num_bytes
from llm.models.tensor_files import OnDisk
from llm.settings.model import ModelConfig
from llm.tokenization.describe import pattern_fact


def describe(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns facts about the checkpoint, run or GGUF file at `path` in display order, without reading weights.

    Raises:
        CheckpointError: Files are missing or contradictory, or the architecture is unknown.
    """
    return read_checkpoint(path, _facts, needs_weights=False)


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    values = checkpoint.values
    facts = {"checkpoint": str(checkpoint)}
    if not checkpoint.is_decoder:
        return facts | {"architecture": str(checkpoint.architecture)}
    is_directory = any(checkpoint.path.glob("*.safetensors"))
    tensors = open_weights(checkpoint.path, values) if is_directory else {}
    config, _ = agreed(checkpoint.config, tensors, family_named(values))
    own = own_dtype(values, tensors)
    if own not in DTYPES:
        raise CheckpointError(f"`dtype` must be one of {', '.join(DTYPES)} in config.json, got {own}")
    return (
        facts
        | _sizes(config, own)
        | ({"architecture": str(checkpoint.architecture)} if checkpoint.is_reward_model else {})
        | _quantised(checkpoint)
        | _shape(config)
        | _memory(config)
        | _step(checkpoint, config, DTYPES[own])
        | _on_cuda(checkpoint)
        | _words(checkpoint)
    )


def _sizes(config: ModelConfig, dtype: str) -> dict[str, str]:
    parameters, active = num_parameters(config), num_active_parameters(config)
    some = "" if active == parameters else f", {active:,} of them for each token"
    family = family_of(config)
    return {
        "architecture": f"{family.architecture} (model_type {family.model_type})",
        "parameters": f"{parameters:,}{some}",
        "weights": ", ".join(_size_in(parameters, name, name == dtype) for name in DTYPES),
    }


def _size_in(parameters: int, dtype: str, is_own: bool) -> str:
    size = f"{parameters * DTYPES[dtype].itemsize / 2**20:,.1f} MiB as {dtype}"
    return f"{size} (its own)" if is_own else size


def _quantised(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns the types of values in files with quantised weights, most frequent first, and their mean size."""
    if not checkpoint.is_quantised:
        return {}
    counts: Counter[str] = Counter()
    tensors = _tensors(checkpoint)
    for tensor in tensors.values():
        counts[tensor.type_name] += math.prod(tensor.shape)
    size, total = sum(_bytes_of(tensor) for tensor in tensors.values()), counts.total()
    shares = ", ".join(f"{name} {100 * count / total:.3g} %" for name, count in counts.most_common())
    return {"stored": f"{shares}: {8 * size / total:.3g} bits a weight, {size / 2**20:,.1f} MiB"}


def _tensors(checkpoint: Checkpoint) -> Mapping[str, OnDisk]:
    return read_tensors(checkpoint) if checkpoint.is_gguf else open_weights(checkpoint.path, checkpoint.values)


def _bytes_of(tensor: OnDisk) -> int:
    if isinstance(tensor, QuantisedTensor | LazyTensor | JoinedTensor):
        return tensor.num_bytes
    return num_bytes(tensor)


def _shape(config: ModelConfig) -> dict[str, str]:
    experts = config.experts if config.mlp == "moe" else None
    inside = f"feed-forward {config.intermediate_size}"
    if experts is not None:
        inside = (
            f"{experts.num_experts_per_tok} of {experts.num_experts} experts of {experts.moe_intermediate_size} a token"
        )
    heads = f"{config.num_attention_heads} query heads, {config.num_key_value_heads} key-value heads"
    if config.sliding_window is not None:
        layers = sum(config.window_of(layer) is not None for layer in range(config.num_hidden_layers))
        heads += f", a window of {config.sliding_window} tokens in {layers} of {config.num_hidden_layers} layers"
    scaling = config.rope_scaling
    stretched = f", stretched {scaling.factor:g}× by {scaling.rope_type}" if scaling else ""
    return {
        "layers": f"{config.num_hidden_layers} × {config.hidden_size} wide, {inside}",
        "attention": f"{config.attention}: {heads}",
        "context": f"{config.max_position_embeddings:,} tokens{stretched}",
    }


def _memory(config: ModelConfig) -> dict[str, str]:
    has_heads = cache_widths(config)[2] > 0  # compressed vectors are never quantised
    names = ["float32", "bfloat16"] + ["int8"] * has_heads
    in_bytes = {name: kv_bytes_per_token(config, getattr(torch, name)) for name in names}
    return {
        "KV cache": ", ".join(f"{count:,} bytes a token as {name}" for name, count in in_bytes.items()),
        "training": f"{flops_per_token(config) / 1e9:,.3g} GFLOP a token at the longest context",
    }


def _step(checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype) -> dict[str, str]:
    """Returns what runs a decode step on a CPU, and the bytes of weights that a step reads."""
    reason = obstacle(config, dtype, torch.device("cpu"))
    num_values = num_multiplied_parameters(config)
    step = _mebibytes(num_values * dtype.itemsize)
    if reason is not None:
        path = f"PyTorch {torch.__version__} (the kernels don't take {reason})"
        return {"CPU decoding": path, "weights a step": step}
    path = f"kernels of llm-oxide ({instruction_sets()[-1]})"
    return {"CPU decoding": path, "weights a step": _if_packed(checkpoint, config, dtype, step)}


def _on_cuda(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns what multiplies quantised weights on CUDA."""
    if not checkpoint.is_quantised:
        return {}
    _, named, matrices = packable_in(checkpoint.values, _tensors(checkpoint), torch.device("cuda"))
    packed = {id(piece.tensor): piece.tensor for pieces in matrices.values() for piece in pieces}
    rest = [tensor for tensor in named.values() if is_quantised(tensor) and id(tensor) not in packed]
    if not packed or rest:
        some = f": {_listed({tensor.type_name for tensor in rest})} can't stay packed" if rest else ""
        return {"CUDA decoding": f"PyTorch, weights expanded{some}"}
    types = _listed({tensor.type_name for tensor in packed.values()})
    return {"CUDA decoding": f"PyTorch, weights expanded; Triton kernels on {types} with `packed_weights` true"}


def _if_packed(checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, expanded: str) -> str:
    """Returns the size of a step's weights, types that stay packed and types that don't, and the size expanded."""
    if not checkpoint.is_quantised:
        return expanded
    config, named, matrices = packable_in(checkpoint.values, _tensors(checkpoint))
    parts = {name: parts_of(pieces) for name, pieces in matrices.items()}
    types = {tensor.type_name for tensor in named.values() if is_quantised(tensor)}
    packed = {piece.tensor.type_name for pieces in matrices.values() for piece in pieces}
    rest = f", {_listed(types - packed)} expanded" if types - packed else ""
    if not packed:
        return expanded + rest
    if not config.tie_word_embeddings:
        parts.pop("embed_tokens.weight", None)
    experts = config.experts if config.mlp == "moe" else None
    share = experts.num_experts_per_tok / experts.num_experts if experts else 1.0
    saved = sum(
        _saved_bytes(part, matrices[name][0].shape[1], dtype) * (1.0 if name.endswith(".weight") else share)
        for name, found in parts.items()
        for part in found
    )
    size = _mebibytes(num_multiplied_parameters(config) * dtype.itemsize - round(saved))
    return f"{size}: {_listed(packed)} packed{rest}; {expanded} with `packed_weights` false"


def _saved_bytes(part: PackedPart, num_cols: int, dtype: torch.dtype) -> int:
    return part.num_rows * num_cols * dtype.itemsize - packed_bytes(part.scheme, part.num_rows, num_cols)


def _listed(types: set[str]) -> str:
    """Returns names of types, those of GGUF files first and in their order."""
    of_gguf = [name for name in TYPES if name in types]
    return " and ".join(of_gguf + sorted(types.difference(of_gguf)))


def _mebibytes(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def _words(checkpoint: Checkpoint) -> dict[str, str]:
    if not checkpoint.has_tokenizer:
        return {"tokenizer": "none"}
    tokenizer = checkpoint.tokenizer()
    return {
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} entries",
        **pattern_fact(tokenizer),
        "chat template": "yes" if tokenizer.chat_template else "no",
    }
