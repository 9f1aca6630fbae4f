"""Facts about a checkpoint, in words."""

import math
import os
from collections import Counter

import torch

from llm._rust import PACKED_SCHEMES, instruction_sets
from llm.checkpoint import DTYPES, Checkpoint, read_checkpoint
from llm.errors import CheckpointError
from llm.inference.runners.cpu_weights import obstacle
from llm.models.costs import flops_per_token, kv_bytes_per_token, num_active_parameters, num_parameters
from llm.models.families import family_named, family_of
from llm.models.gguf import read_tensors
from llm.models.gguf.types import TYPES
from llm.models.hf import agreed, own_dtype
from llm.models.tensor_files import open_tensors
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
    tensors = open_tensors(checkpoint.path) if is_directory else {}
    config, _ = agreed(checkpoint.config, tensors, family_named(values))
    own = own_dtype(values, tensors)
    if own not in DTYPES:
        raise CheckpointError(f"`dtype` must be one of {', '.join(DTYPES)} in config.json, got {own}")
    return (
        facts
        | _sizes(config, own)
        | _quantised(checkpoint)
        | _shape(config)
        | _memory(checkpoint, config, DTYPES[own])
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
    """Returns the types of values in a GGUF file, most frequent first, and their mean size."""
    if not checkpoint.is_gguf:
        return {}
    counts: Counter[str] = Counter()
    for tensor in read_tensors(checkpoint).values():
        counts[tensor.type_name] += math.prod(tensor.shape)
    num_bytes, total = sum(TYPES[name].num_bytes(count) for name, count in counts.items()), counts.total()
    shares = ", ".join(f"{name} {100 * count / total:.3g} %" for name, count in counts.most_common())
    return {"stored": f"{shares}: {8 * num_bytes / total:.3g} bits a weight, {num_bytes / 2**20:,.1f} MiB"}


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


def _memory(checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype) -> dict[str, str]:
    in_bytes = {name: kv_bytes_per_token(config, dtype) for name, dtype in DTYPES.items() if name != "float16"}
    return {
        "KV cache": ", ".join(f"{count:,} bytes a token as {name}" for name, count in in_bytes.items()),
        "training": f"{flops_per_token(config) / 1e9:,.3g} GFLOP a token at the longest context",
        "CPU decoding": _cpu_path(checkpoint, config, dtype),
    }


def _cpu_path(checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype) -> str:
    reason = obstacle(config, dtype, torch.device("cpu"))
    if reason is None:
        types = {tensor.type_name for tensor in read_tensors(checkpoint).values()} if checkpoint.is_gguf else set()
        packed = [name for name in PACKED_SCHEMES if name in types]
        kept = f", {' and '.join(packed)} packed if `packed_weights` is set" if packed else ""
        return f"kernels of llm-oxide ({instruction_sets()[-1]}){kept}"
    return f"PyTorch {torch.__version__} (the kernels don't take {reason})"


def _words(checkpoint: Checkpoint) -> dict[str, str]:
    if not checkpoint.has_tokenizer:
        return {"tokenizer": "none"}
    tokenizer = checkpoint.tokenizer()
    return {
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} entries",
        **pattern_fact(tokenizer),
        "chat template": "yes" if tokenizer.chat_template else "no",
    }
