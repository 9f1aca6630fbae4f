"""What rank 0 and the other ranks send each other through pipes."""

from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from llm._rust import StepPlan
from llm.inference.runners.base import Step
from llm.settings.engine import EngineConfig

_LENGTH_BYTES = 8


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message to a rank: what to load.

    Attributes:
        path: The checkpoint.
        dtype: Type of the weights, as `load_engine` takes it.
        device: `cpu`, or the rank's own GPU.
        rank: Number of the rank, from 1.
        size: Number of ranks, rank 0 included.
        store: File through which the ranks find each other.
        torch_threads: Threads of PyTorch.
        limits: Limits of the engine.
    """

    path: str
    dtype: str
    device: str
    rank: int
    size: int
    store: str
    torch_threads: int
    limits: EngineConfig


class Join(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Tells a rank to allocate its cache and to join the process group.

    Attributes:
        num_blocks: Number of cache blocks, the same on each rank.
    """

    num_blocks: int


class Pass(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The arrays of a step, named as in `StepPlan`, as bytes in their types there."""

    token_ids: bytes
    positions: bytes
    slot_mapping: bytes
    query_start: bytes
    seq_lens: bytes
    block_tables: bytes
    logits_indices: bytes
    block_copies: bytes

    @classmethod
    def of(cls, plan: StepPlan | Step) -> "Pass":
        """Returns the message for a plan."""
        return cls(**{name: getattr(plan, name).tobytes() for name in cls.__struct_fields__})

    def step(self) -> Step:
        """Returns the arrays of the plan."""
        seq_lens = _array(self.seq_lens, np.int32)
        return Step(
            token_ids=_array(self.token_ids, np.int64),
            positions=_array(self.positions, np.int64),
            slot_mapping=_array(self.slot_mapping, np.int64),
            query_start=_array(self.query_start, np.int32),
            seq_lens=seq_lens,
            block_tables=_array(self.block_tables, np.int32).reshape(len(seq_lens), -1),
            logits_indices=_array(self.logits_indices, np.int64),
            block_copies=_array(self.block_copies, np.int64).reshape(-1, 2),
        )


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A rank has its weights.

    Attributes:
        weights_bytes: Bytes of its parameters.
        free_bytes: Bytes that its device has left.
    """

    weights_bytes: int
    free_bytes: int


class Joined(msgspec.Struct, frozen=True, tag=True):
    """A rank has its cache, and joins."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A rank ends with an error."""

    message: str


Message = Job | Join | Pass
Report = Loaded | Joined | Failed


def write(stream: BinaryIO, message: Message | Report) -> None:
    """Writes a message, its length first."""
    packed = msgspec.msgpack.encode(message)
    stream.write(len(packed).to_bytes(_LENGTH_BYTES, "little") + packed)
    stream.flush()


def read(stream: BinaryIO, kinds: Any) -> Any:
    """Reads a message of one of `kinds`; None once the other side has closed the stream or ended."""
    head = stream.read(_LENGTH_BYTES)
    packed = stream.read(int.from_bytes(head, "little")) if len(head) == _LENGTH_BYTES else b""
    return msgspec.msgpack.decode(packed, type=kinds) if packed else None


def _array(packed: bytes, dtype: type) -> NDArray[Any]:
    return np.frombuffer(bytearray(packed), dtype=dtype)  # PyTorch warns about arrays that can't be written
