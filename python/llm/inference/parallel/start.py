"""Starts the ranks of a model that is split, or says why it can't be."""

from dataclasses import dataclass

import torch

from llm.checkpoint import Checkpoint
from llm.errors import ConfigError
from llm.inference.kv_cache import check_cache_dtype, free_memory
from llm.inference.parallel.group import check_no_group
from llm.inference.parallel.messages import Loaded
from llm.inference.parallel.workers import Workers
from llm.models import DecoderModel
from llm.models.tensor_parallel import Shard, obstacle
from llm.settings.engine import DraftSpeculation, EngineConfig
from llm.settings.model import ModelConfig


@dataclass(frozen=True)
class Started:
    """Ranks that have their weights and wait for a cache.

    Attributes:
        model: The part of rank 0, which is this process.
        config: The whole model's config.
        workers: The other ranks.
        free_bytes: Bytes that each rank may use.
    """

    model: DecoderModel
    config: ModelConfig
    workers: Workers
    free_bytes: int


def check_split(checkpoint: Checkpoint, config: EngineConfig) -> None:
    """Checks that a checkpoint can be split with these settings, without reading its weights.

    Raises:
        ConfigError: It can't; the error names the obstacle.
        CheckpointError: The config is missing or wrong.
    """
    size = config.tensor_parallel_size
    found = _obstacle(checkpoint, config)
    if found is not None:
        problem, hint = found
        raise ConfigError(f"`tensor_parallel_size` can't be {size} for {checkpoint}: {problem}\nhint: {hint}")


def _obstacle(checkpoint: Checkpoint, config: EngineConfig) -> tuple[str, str] | None:
    """Returns why a checkpoint can't be split, with a way out."""
    reasons = [
        (checkpoint.is_adapter, "an adapter is merged into whole weights", "`llm merge` writes a checkpoint to split"),
        (not checkpoint.is_decoder or checkpoint.is_reward_model, "it generates no text", "leave it out"),
        (checkpoint.is_quantised, "quantised weights aren't split", "use the checkpoint that was quantised"),
        (config.backend == "kernels", "the CPU kernels run a whole model", "set `backend` to 'auto' or 'torch'"),
        (config.packed_weights is True, "packed weights aren't split", "leave `packed_weights` out"),
        (
            isinstance(config.speculative, DraftSpeculation),
            "a draft model isn't split",
            "draft from earlier text (`ngram`), or leave `speculative` out",
        ),
    ]
    found = next(((problem, hint) for applies, problem, hint in reasons if applies), None)
    return found or obstacle(checkpoint.config, config.tensor_parallel_size)


def start_ranks(checkpoint: Checkpoint, dtype: str, device: torch.device, config: EngineConfig) -> Started:
    """Starts a process for each other rank; all ranks load their parts at the same time.

    Args:
        checkpoint: The whole model.
        dtype: Type of the weights, as `load_engine` takes it.
        device: `cpu`, or the first GPU; rank N gets GPU N.
        config: Engine limits.

    Raises:
        ConfigError: The checkpoint can't be split with these settings, or there are too few GPUs.
        CheckpointError: Files are missing, damaged or contradictory.
        ProcessLostError: A rank has ended.
    """
    check_split(checkpoint, config)
    check_no_group()
    check_cache_dtype(config.kv_cache_dtype, checkpoint.config, device)
    devices = _devices(device, config.tensor_parallel_size)
    workers = Workers(checkpoint.path, dtype, devices, config)
    try:
        model = checkpoint.shard(Shard(0, workers.size), dtype, devices[0])
        loaded = workers.reports(Loaded)
    except BaseException:
        workers.close()
        raise
    free = min([free_memory(devices[0]), *(report.free_bytes for report in loaded)])
    shared = workers.size if device.type == "cpu" else 1  # ranks on a CPU take their caches from the same memory
    return Started(model, checkpoint.config, workers, free // shared)


def _devices(device: torch.device, size: int) -> list[torch.device]:
    """Returns the device of each rank.

    Raises:
        ConfigError: There are fewer GPUs than ranks, or the first one isn't GPU 0.
    """
    if device.type == "cpu":
        return [device] * size
    if device.index:
        raise ConfigError(
            f"`device` must be auto, cpu or cuda with `tensor_parallel_size` {size}, got {device}\n"
            "hint: `CUDA_VISIBLE_DEVICES` chooses the GPUs"
        )
    count = torch.cuda.device_count()
    if count < size:
        raise ConfigError(f"`tensor_parallel_size` must be at most the {count} GPUs that PyTorch sees, got {size}")
    return [torch.device("cuda", rank) for rank in range(size)]
