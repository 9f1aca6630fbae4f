"""Saving beside the loop: a thread copies the state while the next step's passes run, then writes the copy."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llm.checkpoint import Checkpoint
from llm.training.distributed import Distributed, is_shard


@dataclass(frozen=True)
class Snapshot:
    """What one process writes of a checkpoint.

    Attributes:
        weights: Whole entries of the model's state.
        moments: The optimizer's tensors, sharded as the parameters are.
        counters: Step, loss scale and further numbers.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    counters: Mapping[str, Any]


class SnapshotCopy:
    """Memory for a copy of the state, reused by each save: fresh memory costs five times the copying itself.

    Copies of a GPU's tensors are pinned, so that copying runs beside the GPU's work.

    Args:
        distributed: This process.
        is_sharded: Whether the moments are sharded.
    """

    def __init__(self, distributed: Distributed, *, is_sharded: bool) -> None:
        on_gpu = distributed.device.type == "cuda"
        self._stream = torch.cuda.Stream() if on_gpu else None  # type: ignore[no-untyped-call]
        self._buffers: dict[str, Tensor] = {}
        self._mesh: Any = None
        if is_sharded and distributed.background is not None:
            from torch.distributed.device_mesh import DeviceMesh

            self._mesh = DeviceMesh.from_group(distributed.background, "cpu")

    def of(self, state: Snapshot, ready: "torch.cuda.Event | None" = None) -> Snapshot:
        """Returns the state in this memory, which stays as it is until the next call.

        Args:
            state: The state, which must not change meanwhile.
            ready: Point in the GPU's work after which the state is there.
        """
        with torch.no_grad(), torch.cuda.stream(self._stream):
            if self._stream is not None and ready is not None:
                self._stream.wait_event(ready)
            weights = {name: self._copied(f"weights/{name}", tensor) for name, tensor in state.weights.items()}
            moments = {name: self._copied(f"moments/{name}", tensor) for name, tensor in state.moments.items()}
        if self._stream is not None:
            self._stream.synchronize()
        return replace(state, weights=weights, moments=moments)

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        if is_shard(tensor):
            return self._shard(name, tensor)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(tensor, non_blocking=tensor.is_cuda)

    def _shard(self, name: str, tensor: Any) -> Tensor:
        from torch.distributed.tensor import DTensor

        local = self._copied(name, tensor.to_local())
        shape, stride = tensor.shape, tensor.stride()
        return DTensor.from_local(local, self._mesh, tensor.placements, run_check=False, shape=shape, stride=stride)


class PendingSave(threading.Thread):
    """A checkpoint on its way to the disk.

    Args:
        checkpoint: The checkpoint.
        copy: Returns a copy of the state; only while it runs must the state not change.
        write: Writes the copy.
    """

    def __init__(
        self, checkpoint: Checkpoint, copy: Callable[[], Snapshot], write: Callable[[Checkpoint, Snapshot], None]
    ) -> None:
        super().__init__(name=f"save {checkpoint.path.name}", daemon=True)
        self.checkpoint = checkpoint
        self.error: BaseException | None = None
        self._copy = copy
        self._write = write
        self._copied = threading.Event()

    def run(self) -> None:
        """Copies, then writes; `error` tells what went wrong."""
        try:
            snapshot = self._copy()
            self._copied.set()
            self._write(self.checkpoint, snapshot)
        except BaseException as error:  # noqa: BLE001 - the loop raises it
            self.error = error
        finally:
            self._copied.set()

    def wait_for_copy(self) -> None:
        """Waits until the state may change."""
        self._copied.wait()

    def result(self) -> Checkpoint:
        """Waits until the checkpoint is complete, and returns it or raises what went wrong."""
        self.join()
        if self.error is not None:
            raise self.error
        return self.checkpoint
