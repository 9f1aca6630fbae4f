"""A model over the processes of a run: replicated in each (DDP), or sharded over all (FSDP2)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llm.errors import ConfigError
from llm.training.distributed import Distributed

# Weights, gradients and the two moments of AdamW, in fp32.
_BYTES_PER_PARAMETER = 16
# More of a GPU's memory than this share for weights, gradients and moments leaves too little room for activations.
_REPLICATED_SHARE = 0.5


class ParallelModel:
    """A model, placed on the devices of a run.

    Args:
        model: Model on the CPU, equal in all processes.
        distributed: This process and its device.
        sharding: `ddp`, `fsdp`, or `auto`, which shards only what does not fit on a GPU. One process never shards.
        dtype: Number type of matrix products.

    Attributes:
        model: The model itself; its parameters are what the optimizer updates.
        module: What training calls instead of the model: averages gradients over processes after backward.

    Raises:
        ConfigError: fp16 with sharding.
    """

    def __init__(self, model: nn.Module, distributed: Distributed, sharding: str, dtype: torch.dtype) -> None:
        self.distributed = distributed
        self.is_sharded = distributed.world_size > 1 and (
            sharding == "fsdp" or (sharding == "auto" and _is_too_large(model, distributed.device))
        )
        if self.is_sharded:
            self.model = self.module = _shard(model, distributed, dtype)
            return
        self.model = model.to(distributed.device)
        self.module = self.model
        if distributed.world_size > 1:
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
        if self.is_sharded:
            cast(Any, self.module).reshard()  # without a backward pass, the outermost parameters stay whole


def _is_too_large(model: nn.Module, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    needed = _BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
    return needed > _REPLICATED_SHARE * torch.cuda.get_device_properties(device).total_memory


def _shard(model: nn.Module, distributed: Distributed, dtype: torch.dtype) -> nn.Module:
    """Shards each block of the model by itself, then the rest; moves one block at a time to the device."""
    if dtype == torch.float16:
        raise ConfigError(
            "`training.sharding=fsdp` supports float32 and bfloat16, got `training.precision=float16`\n"
            "hint: set training.precision=bfloat16, or training.sharding=ddp"
        )
    # These modules take 1.6 s to import, which runs without shards save.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(distributed.device.type, (distributed.world_size,))
    # Gradients of bf16 weights are summed in fp32. Inputs are not cast, because rotary angles need their precision.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if dtype != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for blocks in model.children():
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model
