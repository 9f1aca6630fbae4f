"""Loads checkpoints into engines."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import msgspec
import torch

from llm._rust import EngineCore
from llm.checkpoint import Checkpoint, read_checkpoint
from llm.checkpoint.weights import dtype_of
from llm.errors import CheckpointError, ConfigError, InvalidArgumentError, LLMWarning
from llm.inference.adapters import ServedAdapters
from llm.inference.engine import Engine
from llm.inference.kv_cache import KVCache, blocks_within, cache_dtype, check_cache_dtype, share_of
from llm.inference.parallel.runner import ParallelModelRunner
from llm.inference.parallel.start import check_split, start_ranks
from llm.inference.runners.base import ModelRunner
from llm.inference.runners.cpu import KernelModelRunner
from llm.inference.runners.cpu_weights import obstacle
from llm.inference.runners.cuda_graph import GraphModelRunner, graph_obstacle
from llm.inference.runners.torch import TorchModelRunner
from llm.inference.session import Session
from llm.inference.speculation.draft import DraftModel
from llm.inference.thread import AsyncEngine
from llm.models import DecoderModel
from llm.models.adapters import is_adapted
from llm.models.costs import kv_bytes_per_token
from llm.models.device import resolve_device
from llm.models.layers.fused import has_triton
from llm.models.packing import expanded_tensors, is_quantised
from llm.models.reward import RewardModel
from llm.settings.engine import DraftSpeculation, EngineConfig
from llm.settings.merge import validated
from llm.settings.model import ModelConfig
from llm.tokenization import BaseTokenizer, BPETokenizer

# On a CPU, splitting a prompt over several steps costs nothing, and small steps answer other requests sooner.
_BATCH_TOKENS = {"cpu": 256, "cuda": 2048}


def load_engine(
    path: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    device: str = "auto",
    config: EngineConfig | None = None,
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Engine:
    """Returns an engine that runs a checkpoint or the newest checkpoint of a run.

    Args:
        path: A `Checkpoint`, or the directory of a checkpoint or run.
        dtype: `auto` (the checkpoint's own), `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu` or `cuda[:N]`.
        config: Engine limits.
        adapters: Directories of adapters that requests may name, by their names.

    Raises:
        CheckpointError: Files are missing, damaged or contradictory, or the model generates no text.
        CapacityError: Not enough memory for one request of the longest context.
        ConfigError: A limit is out of range, the draft model has a different vocabulary, or the model can't be split.
        ProcessLostError: A process that was to hold a part of the model ended.
    """
    config = validated(config or EngineConfig())
    place = resolve_device(device)
    if config.tensor_parallel_size > 1:
        _refuse(adapters)
        return read_checkpoint(path, lambda found: _split_engine(found, dtype, place, config))
    _check_adapters(adapters)
    base, (model, tokenizer, defaults) = read_checkpoint(
        path, lambda found: (found, _read(found, dtype, place, config))
    )
    engine = build_engine(model, tokenizer, config)
    engine.generation_defaults = defaults
    engine.adapters = ServedAdapters(engine.runner, base)
    for name, directory in (adapters or {}).items():
        engine.adapters.add(name, engine.adapters.prepared(directory))
    return engine


def _check_adapters(adapters: Mapping[str, str | os.PathLike[str]] | None) -> None:
    """Checks that each adapter is there, before its base is read, which may take minutes.

    Raises:
        InvalidArgumentError: `adapters` is no mapping of names to paths.
        CheckpointError: There is nothing at a path; the message names the adapter.
    """
    if adapters is not None and not isinstance(adapters, Mapping):
        raise InvalidArgumentError(
            f"`adapters` must map names to directories, got {adapters!r}\nhint: `adapters={{'mine': 'runs/mine'}}`"
        )
    for name, directory in (adapters or {}).items():
        if not isinstance(directory, str | os.PathLike):
            raise InvalidArgumentError(f"the adapter {name!r} must be a directory, got {directory!r}")
        try:
            read_checkpoint(directory, lambda found: found, needs_weights=False)
        except CheckpointError as error:
            raise CheckpointError(f"the adapter {name!r}: {error}") from error


def check_loadable(path: str | os.PathLike[str], *, dtype: str = "auto", config: EngineConfig | None = None) -> None:
    """Checks the settings of a load against the checkpoint without reading its weights.

    Raises:
        CheckpointError: There is no checkpoint, its config is wrong, or the number type is unknown.
        ConfigError: A limit is out of range.
    """
    limits = validated(config or EngineConfig())

    def check(checkpoint: Checkpoint) -> None:
        if dtype != "auto":
            dtype_of({}, {}, dtype)
        if checkpoint.is_decoder:
            _max_model_len(limits, checkpoint.config)
        if limits.tensor_parallel_size > 1:
            check_split(checkpoint, limits)

    read_checkpoint(path, check, needs_weights=False)


def _read(
    checkpoint: Checkpoint, dtype: str, device: torch.device, config: EngineConfig
) -> tuple[DecoderModel, BaseTokenizer, dict[str, float]]:
    """Returns the model, the tokenizer and the sampling defaults of a checkpoint."""
    if checkpoint.is_decoder:
        check_cache_dtype(config.kv_cache_dtype, checkpoint.config, device)
    model = checkpoint.model(dtype, device, keep_packed=_keeps_packed(checkpoint, dtype, device, config))
    if not isinstance(model, DecoderModel):
        raise CheckpointError(f"{checkpoint} contains a regression model, which generates no text")
    return model, _tokenizer(checkpoint, model.config.vocab_size), checkpoint.generation_defaults()


def _tokenizer(checkpoint: Checkpoint, vocab_size: int) -> BaseTokenizer:
    tokenizer = checkpoint.tokenizer()
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer of {checkpoint} must have at most the model's {vocab_size} entries, "
            f"got {tokenizer.vocab_size}\nhint: copy the tokenizer that belongs to these weights"
        )
    return tokenizer


def _split_engine(checkpoint: Checkpoint, dtype: str, device: torch.device, config: EngineConfig) -> Engine:
    """Returns an engine whose model is split over processes; see `llm.inference.parallel`."""
    started = start_ranks(checkpoint, dtype, device, config)
    try:
        tokenizer = _tokenizer(checkpoint, started.config.vocab_size)
        memory = config.kv_cache_memory_bytes or share_of(started.free_bytes)
        cache = _cache(started.model, config, memory, _max_model_len(config, started.config))
        runner = ParallelModelRunner(started, cache)
        engine = build_engine(started.model, tokenizer, config, runner=runner, cache=cache)
    except BaseException:
        started.workers.close()
        raise
    engine.generation_defaults = checkpoint.generation_defaults()
    return engine


def _refuse(adapters: Mapping[str, str | os.PathLike[str]] | None) -> None:
    if adapters:
        raise ConfigError(
            f"adapters can't be served with `tensor_parallel_size`, got {', '.join(adapters)}\n"
            "hint: `llm merge` writes a checkpoint with the adapter in its weights"
        )


def _keeps_packed(checkpoint: Checkpoint, dtype: str, device: torch.device, config: EngineConfig) -> bool:
    """Whether quantised matrices stay packed, as far as they can; says so where some can't.

    Raises:
        ConfigError: `packed_weights` is true, but a quantised matrix can't stay packed.
    """
    wanted = config.packed_weights
    if not checkpoint.is_quantised or not wanted or (wanted == "auto" and _is_elsewhere(config, device)):
        return False
    dtype_found = dtype_of(checkpoint.values, {}, dtype)
    reason = _packing_obstacle(checkpoint.config, dtype_found, device, config)
    if reason and not any(is_quantised(tensor) for tensor in checkpoint.opened()[1].values()):
        return False  # a GGUF file of plain numbers
    expanded = {} if reason else expanded_tensors(*checkpoint.opened(), device)
    if not reason and not expanded:
        return True
    problem = f"the kernels don't take {reason}" if reason else _told(expanded)
    if wanted != "auto":
        raise ConfigError(
            f"`packed_weights` must be auto or false for {checkpoint}, got true: {problem}\n"
            "hint: `packed_weights` auto expands what can't stay packed"
        )
    warnings.warn(f"{checkpoint}: quantised weights are expanded, since {problem}", LLMWarning, stacklevel=2)
    return not reason


def _packing_obstacle(model: ModelConfig, dtype: torch.dtype, device: torch.device, config: EngineConfig) -> str | None:
    """Returns a short reason why packed weights can't be multiplied, or None if they can."""
    if device.type == "cuda":
        return None if has_triton() else f"weights on {device.type} without Triton"
    return "`backend` torch" if config.backend == "torch" else obstacle(model, dtype, device)


def _told(expanded: Mapping[str, str]) -> str:
    """Says which tensors can't stay packed, given their types by name."""
    name, type_name = next(iter(expanded.items()))
    more = f" and {len(expanded) - 1} more tensors" if len(expanded) > 1 else ""
    return f"the kernels don't multiply {name} in {type_name}{more} packed"


def _is_elsewhere(config: EngineConfig, device: torch.device) -> bool:
    """Whether the settings themselves leave the kernels aside."""
    return config.backend == "torch" or device.type != "cpu"


def build_engine(
    model: DecoderModel,
    tokenizer: BaseTokenizer,
    config: EngineConfig | None = None,
    *,
    runner: ModelRunner | None = None,
    cache: KVCache | None = None,
) -> Engine:
    """Returns an engine that runs a model already in memory.

    Args:
        model: The model in eval mode, on its device.
        tokenizer: The tokenizer, with at most as many entries as the model's vocabulary.
        config: Engine limits.
        runner: What runs the model; None selects what suits the device.
        cache: Memory for keys and values, such as that of an earlier engine; None allocates it.

    Raises:
        CapacityError: Not enough memory for one request of the longest context.
        ConfigError: A limit is out of range, or the draft model has a different vocabulary.
    """
    config = validated(config or EngineConfig())
    if config.tensor_parallel_size > 1 and runner is None:
        raise ConfigError(
            f"`tensor_parallel_size` must be 1 for a model in memory, got {config.tensor_parallel_size}\n"
            "hint: `load_engine` splits a checkpoint"
        )
    max_model_len = _max_model_len(config, model.config)
    cache = cache or _cache(model, config, config.kv_cache_memory_bytes, max_model_len)
    max_batch_tokens = config.max_batch_tokens or _BATCH_TOKENS[model.device.type]
    limits = msgspec.structs.replace(config, max_model_len=max_model_len, max_batch_tokens=max_batch_tokens)
    core = EngineCore(
        limits,
        num_blocks=cache.num_blocks,
        token_bytes=tokenizer.token_bytes(),
        special_ids=sorted(tokenizer.special_tokens.values()),
        eos_ids=list(tokenizer.eos_ids),
        pad_id=tokenizer.pad_id,
        tokenizer=tokenizer.core if isinstance(tokenizer, BPETokenizer) else None,
    )
    runner = runner or model_runner(model, cache, config, max_model_len)
    draft = _draft_model(config, max_model_len, tokenizer, model)
    return Engine(core, runner, tokenizer, max_model_len, draft=draft, limits=limits)


def model_runner(model: DecoderModel, cache: KVCache, config: EngineConfig, max_model_len: int) -> ModelRunner:
    """Returns the runner for a model: the CPU kernels if enabled and able to run it, otherwise PyTorch.

    On CUDA, the PyTorch runner uses graphs.

    Raises:
        ConfigError: The configuration requires the kernels, but they can't run the model.
    """
    reason = obstacle(model.config, model.dtype, model.device)
    if is_adapted(model):
        reason = "adapters that are not merged"
    if isinstance(model, RewardModel):
        reason = "it is a reward model, which has no output layer"
    if reason is not None and config.backend == "kernels":
        raise ConfigError(f"`backend` 'kernels' can't run this model: {reason}\nhint: `backend` 'auto' or 'torch'")
    on_gpu = model.device.type == "cuda" and has_triton() and not isinstance(model, RewardModel)
    if on_gpu and config.enable_cuda_graphs and graph_obstacle(model.config) is None:
        return GraphModelRunner(model, cache, max_requests=config.max_running_requests, max_model_len=max_model_len)
    if reason is not None or config.backend == "torch":
        return TorchModelRunner(model, cache)
    return KernelModelRunner(model, cache, config.num_threads or torch.get_num_threads())


def load_async_engine(path: str | os.PathLike[str], **options: Any) -> AsyncEngine:
    """Returns an engine for asyncio, loaded as by `load_engine` with the same options; call its `start` before use."""
    return AsyncEngine(Session(load_engine(path, **options)))


def _draft_model(
    config: EngineConfig, max_model_len: int, tokenizer: BaseTokenizer, main: DecoderModel
) -> DraftModel | None:
    """Returns the draft model, in the dtype and on the device of the main model."""
    speculation = config.speculative
    if not isinstance(speculation, DraftSpeculation):
        return None
    dtype = str(main.dtype).removeprefix("torch.")
    model, own_tokenizer, _ = read_checkpoint(speculation.path, lambda found: _read(found, dtype, main.device, config))
    found = own_tokenizer.token_bytes()
    if found != tokenizer.token_bytes():
        raise ConfigError(
            f"`speculative.path` must be a model with the same {tokenizer.vocab_size} tokens, got {len(found)} others "
            f"in {speculation.path}\nhint: use a smaller model of the same family, or one with the same tokenizer"
        )
    max_len = min(max_model_len, model.config.max_position_embeddings)
    cache = _cache(model, config, speculation.kv_cache_memory_bytes, max_len)
    return DraftModel(
        model_runner(model, cache, config, max_len),
        num_blocks=cache.num_blocks,
        block_size=config.block_size,
        num_draft_tokens=speculation.num_draft_tokens,
        max_model_len=max_len,
        vocab_size=min(model.config.vocab_size, tokenizer.vocab_size),
    )


def _cache(model: DecoderModel, config: EngineConfig, memory_bytes: int | None, max_model_len: int) -> KVCache:
    check_cache_dtype(config.kv_cache_dtype, model.config, model.device)
    dtype = cache_dtype(config.kv_cache_dtype, model.dtype)
    num_blocks = blocks_within(
        memory_bytes,
        kv_bytes_per_token(model.config, dtype) * config.block_size,
        -(-max_model_len // config.block_size),
        config.max_running_requests,
        model.device,
    )
    return KVCache.allocate(model.config, num_blocks, config.block_size, dtype, model.device)


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    longest = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(f"`max_model_len` must be at most the model's {longest}, got {config.max_model_len}")
    return config.max_model_len or longest
