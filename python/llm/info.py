"""What a checkpoint is, in words."""

import os

import torch

from llm.checkpoint import load_model, resolve
from llm.inference.kv_cache import bytes_per_token
from llm.models import DecoderModel
from llm.tokenization import load_tokenizer
from llm.tokenization.describe import pattern_fact


def describe(path: str | os.PathLike[str]) -> dict[str, str]:
    """Facts about the checkpoint or run at `path`, in the order to show them.

    Raises:
        CheckpointError: Missing, torn or contradictory files.
    """
    directory = resolve(path)
    model = load_model(directory)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = next(model.parameters()).dtype
    facts = {
        "checkpoint": str(directory),
        "architecture": type(model).__name__,
        "parameters": f"{parameters:,}",
        "weights": f"{parameters * dtype.itemsize / 2**20:.1f} MiB ({str(dtype).removeprefix('torch.')})",
    }
    if not isinstance(model, DecoderModel):
        return facts
    config = model.config
    tokenizer = load_tokenizer(directory)
    return facts | {
        "layers": f"{config.num_hidden_layers} × {config.hidden_size} wide, feed-forward {config.intermediate_size}",
        "attention": f"{config.num_attention_heads} query heads, {config.num_key_value_heads} key-value heads",
        "context": f"{config.max_position_embeddings} tokens",
        "KV cache": f"{bytes_per_token(config, dtype):,} bytes a token",
        "decoding path": f"PyTorch {torch.__version__}",
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} entries",
        **pattern_fact(tokenizer),
        "chat template": "yes" if tokenizer.chat_template else "no",
    }
