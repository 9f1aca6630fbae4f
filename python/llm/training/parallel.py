"""A model over the processes of a run: replicated in each (DDP), or sharded over all (FSDP2)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llm.errors import ConfigError
from llm.models.layers.lora import AdaptedLinear
from llm.training.distributed import Distributed

# Weights, gradients and the two moments of AdamW, in fp32.
_BYTES_PER_TRAINED = 16
# More of a GPU's memory than this share for weights, gradients and moments leaves too little room for activations.
_REPLICATED_SHARE = 0.5

T = TypeVar("T")


class ParallelModel:
    """A model, placed on the devices of a run.

    Args:
        model: Model on the CPU, equal in all processes.
        distributed: This process and its device.
        sharding: `ddp`, `fsdp`, or `auto`, which shards only what does not fit on a GPU. One process never shards.
        dtype: Number type that a sharded model's blocks are gathered in.

    Attributes:
        model: The model itself; its parameters are what the optimizer updates.
        module: What training calls instead of the model: averages gradients over processes after backward.

    Raises:
        ConfigError: fp16 with sharding.
    """

    def __init__(self, model: nn.Module, distributed: Distributed, sharding: str, dtype: torch.dtype) -> None:
        self.distributed = distributed
        self.is_sharded = takes_shards(model, distributed, sharding)
        if self.is_sharded:
            self.model = self.module = shard(model, distributed.device, dtype)
            return
        self.model = model.to(distributed.device)
        self.module = self.model
        if distributed.world_size > 1 and any(parameter.requires_grad for parameter in model.parameters()):
            device_ids = [distributed.device] if distributed.device.type == "cuda" else None
            self.module = DistributedDataParallel(self.model, device_ids=device_ids)

    @contextlib.contextmanager
    def gradient_sync(self, *, last: bool) -> Iterator[None]:
        """Exchanges gradients in the `last` accumulation pass of a step only."""
        if self.is_sharded:
            cast(Any, self.module).set_requires_gradient_sync(last)
            yield
        elif isinstance(self.module, DistributedDataParallel) and not last:
            with self.module.no_sync():
                yield
        else:
            yield

    def in_step(self, batches: Iterable[Any], filler: Any, vote: Callable[[], int]) -> Iterator[tuple[Any, bool]]:
        """Yields batches with whether they count, as many in each process, until any process votes to stop.

        A sharded model needs as many passes in each process, and a stop must come at the same pass.

        Args:
            batches: This process's batches, of which other processes may have more or fewer.
            filler: Batch for passes in which only other processes have one.
            vote: Returns whether to stop.
        """
        own = iter(batches)
        while True:
            batch = next(own, None)
            num_going_on, votes = self.distributed.sum(batch is not None, vote())
            if not num_going_on or votes:
                break
            yield (filler, False) if batch is None else (batch, True)
        reshard(self.module)

    def shared(self, batches: Iterable[T], idle: Callable[[], object]) -> Iterator[T]:
        """Yields this process's batches; whoever takes them makes a pass of the model for each.

        Args:
            batches: This process's batches, of which other processes may have more or fewer.
            idle: Makes such a pass to no purpose, which a sharded model needs where only other processes have a batch.
        """
        if not self.is_sharded:
            yield from batches
            return
        for batch, counts in self.in_step(batches, None, lambda: 0):
            if counts:
                yield batch
            else:
                idle()


def takes_shards(model: nn.Module, distributed: Distributed, sharding: str) -> bool:
    """Returns whether a model is to be sharded over the processes; `sharding` is as for `ParallelModel`."""
    if distributed.world_size == 1 or sharding == "ddp":
        return False
    return sharding == "fsdp" or _is_too_large(model, distributed.device)


def _is_too_large(model: nn.Module, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    needed = sum(
        _BYTES_PER_TRAINED * parameter.numel() if parameter.requires_grad else parameter.nbytes
        for parameter in model.parameters()
    )
    return needed > _REPLICATED_SHARE * torch.cuda.get_device_properties(device).total_memory


def reshard(model: nn.Module) -> None:
    """Frees what passes without a backward pass leave whole: a sharded model's outermost parameters."""
    free: Callable[[], None] | None = getattr(model, "reshard", None)
    if free is not None:
        free()


def shard(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Shards each block of the model by itself, then the rest; moves one block at a time to the device.

    Frozen weights are sharded too. Packed matrices, which are no parameters, can't be.

    Args:
        model: Model on the CPU, equal in all processes.
        device: Device of this process.
        dtype: Number type that blocks are gathered in.

    Raises:
        ConfigError: fp16, or packed matrices.
    """
    if dtype == torch.float16:
        raise ConfigError(
            "`training.sharding=fsdp` supports float32 and bfloat16, got `training.precision=float16`\n"
            "hint: set training.precision=bfloat16, or training.sharding=ddp"
        )
    check_unpacked(any(isinstance(module, AdaptedLinear) and module.matrix is not None for module in model.modules()))
    # These modules take 1.6 s to import, which runs without shards save.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Gradients of bf16 weights are summed in fp32. Inputs are not cast, because rotary angles need their precision.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if dtype != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for blocks in model.children():
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def check_unpacked(is_packed: bool) -> None:
    """Checks that no matrix of a model to be sharded is packed.

    Raises:
        ConfigError: One is.
    """
    if is_packed:
        raise ConfigError(
            "`training.sharding=fsdp` can't shard a quantised base, whose weights stay packed on a CPU\n"
            "hint: training.sharding=ddp keeps them packed in each process; a base in floating point can be sharded"
        )
