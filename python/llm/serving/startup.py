"""What a server prints once it is ready: the model, its memory and limits, and a command to try."""

import json
import shlex
from typing import Any

from llm.inference import Engine
from llm.models.costs import num_parameters
from llm.models.layers.packed import packed_matrices
from llm.settings.server import ServerConfig


def summary(engine: Engine, config: ServerConfig, *, name: str, url: str) -> str:
    """Returns the lines to print.

    Args:
        engine: The loaded engine.
        config: The server's settings.
        name: The model's name for clients.
        url: The server's URL without a path.
    """
    facts = _memory(engine, config) | _limits(config) | {"try": _example(engine, config, name, url)}
    rows = "".join(f"  {label:<9} {fact}\n" for label, fact in facts.items())
    return f"Serving {name} at {url} (base URL for OpenAI clients: {url}/v1)\n{rows}"


def _memory(engine: Engine, config: ServerConfig) -> dict[str, str]:
    model = engine.runner.model
    dtype, packed = model.dtype, packed_matrices(model)
    weights_bytes = sum(weight.nbytes for weight in (*model.parameters(), *(matrix.data for matrix in packed)))
    types = dict.fromkeys([*sorted({scheme for matrix in packed for scheme in matrix.schemes}), _plain(dtype)])
    num_blocks, block_size = engine.stats()["blocks_total"], config.engine.block_size
    num_tokens = num_blocks * block_size
    cache_type, token_bytes = engine.cache_format
    each = f" in each of {size} processes" if (size := engine.limits.tensor_parallel_size) > 1 else ""
    return {
        "model": f"{num_parameters(engine.model_config):,} parameters, "
        f"{_size(weights_bytes)} as {', '.join(types)}{each}",
        "backend": engine.runner.backend,
        "context": f"{engine.max_model_len:,} tokens",
        "cache": f"{_size(num_tokens * token_bytes)} for {num_tokens:,} tokens, {num_blocks:,} blocks of {block_size}, "
        f"{token_bytes:,} bytes a token as {cache_type}{each}",
    }


def _limits(config: ServerConfig) -> dict[str, str]:
    limits = config.engine
    has_keys = config.api_keys or config.api_key_file
    return {
        "requests": f"{limits.max_running_requests:,} at once, {limits.max_waiting_requests:,} waiting",
        "limits": f"bodies up to {_size(config.max_body_bytes)}, within {config.body_timeout_s:g} s",
        "keys": "needed" if has_keys else "none needed",
    }


def _example(engine: Engine, config: ServerConfig, name: str, url: str) -> str:
    """Returns a `curl` command that asks the model for a few tokens."""
    body: dict[str, Any] = {"model": name, "max_tokens": 32}
    if engine.tokenizer.chat_template is None:
        path, body["prompt"] = "completions", "Once upon a time"
    else:
        path, body["messages"] = "chat/completions", [{"role": "user", "content": "Hello"}]
    key = '-H "Authorization: Bearer $LLM_API_KEY" ' if config.api_keys or config.api_key_file else ""
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl {url}/v1/{path} {key}-H 'Content-Type: application/json' -d {data}"


def _size(size_bytes: int) -> str:
    unit, divisor = ("GiB", 2**30) if size_bytes >= 2**30 else ("MiB", 2**20)
    return f"{size_bytes / divisor:,.3g} {unit}"


def _plain(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
