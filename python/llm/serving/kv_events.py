"""Events of the key-value cache over ZeroMQ, for routers that send a prompt to where its beginning is cached.

Messages are those of vLLM 0.32: `(topic, sequence number, payload)`, the number in 8 bytes, big-endian. The payload is
a batch in MessagePack: the array `[time, events, rank]`, whose events are maps with their `type`. Whoever missed some
asks the replay socket for all from a number on.

Source: `vllm/distributed/kv_events.py` and `vllm/v1/core/block_pool.py` of vLLM 0.32.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from llm.errors import ConfigError, ServerError
from llm.inference import AsyncEngine
from llm.settings.kv_events import KVEventsConfig

if TYPE_CHECKING:
    import zmq

logger = logging.getLogger(__name__)

# vLLM's word for the blocks that a model computes with, its CPU build's too; others are for copies elsewhere.
_MEDIUM = "GPU"
_LAYERS = "full_attention"
_END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
_WAKE = "inproc://llm-kv-events-{}"
_LINGER_MS = 1000


class KVCacheEvent(msgspec.Struct, frozen=True, omit_defaults=True, gc=False, tag=True):
    """An event of the cache."""


class BlockStored(KVCacheEvent, frozen=True):
    """Consecutive blocks of one text can be reused from now on.

    Attributes:
        block_hashes: The blocks' names, 64 bits each, which no other server shares.
        parent_block_hash: The block before the first; None where the text begins.
        token_ids: The tokens of all blocks.
        block_size: Tokens of each block.
        lora_id: The adapter's number; None for the model itself.
        medium: Where the blocks are.
        lora_name: The adapter's name.
        extra_keys: For each block, what else its hash covers: the adapter's name.
        group_idx: The group of layers; there is one.
        kv_cache_spec_kind: The kind of layers.
    """

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(KVCacheEvent, frozen=True):
    """Blocks can no longer be reused."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(KVCacheEvent, frozen=True):
    """No block can be reused any more."""


Event: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """What changed in one step; `ts` is in seconds since 1970."""

    ts: float
    events: list[Event]
    data_parallel_rank: int | None = None


class KVEventPublisher:
    """Publishes events from a thread of its own; one other thread at a time may call `publish`.

    Args:
        config: Where to publish.

    Raises:
        ServerError: An address can't be used.
    """

    def __init__(self, config: KVEventsConfig) -> None:
        import zmq

        self._context = zmq.Context()
        self._topic = config.topic.encode()
        self._buffer: deque[tuple[bytes, bytes]] = deque(maxlen=config.buffer_steps)
        self._pack = msgspec.msgpack.Encoder().encode
        try:
            self._pub = self._socket(zmq.PUB, config.endpoint, hwm=config.hwm, is_bound=_is_bound(config.endpoint))
            self._replay = None
            if config.replay_endpoint is not None:
                self._replay = self._socket(zmq.ROUTER, config.replay_endpoint, hwm=0)
            wake = _WAKE.format(id(self))
            self._inbox = self._socket(zmq.PULL, wake, hwm=config.max_queue_size)
            self._outbox = self._socket(zmq.PUSH, wake, hwm=config.max_queue_size, is_bound=False)
        except ServerError:
            self._context.destroy(linger=0)
            raise
        self._thread = threading.Thread(target=self._work, name="llm-kv-events", daemon=True)
        self._thread.start()

    def _socket(self, kind: int, address: str, *, hwm: int, is_bound: bool = True) -> zmq.Socket[bytes]:
        import zmq

        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set_hwm(hwm)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.setsockopt(zmq.IPV6, "[" in address)
        try:
            socket.bind(address) if is_bound else socket.connect(address)
        except zmq.ZMQError as error:
            verb = "listen on" if is_bound else "connect to"
            raise ServerError(f"`kv_events_config` can't {verb} {address}: {error.strerror}") from error
        return socket

    def publish(self, events: list[Event]) -> None:
        """Queues a batch; waits if too many batches wait already."""
        self._outbox.send(self._pack(EventBatch(time.time(), events, 0)))

    def close(self) -> None:
        """Publishes what is queued and closes the sockets."""
        self._outbox.send(b"")
        self._thread.join()
        self._context.destroy()

    def _work(self) -> None:
        import zmq

        poller = zmq.Poller()
        poller.register(self._inbox, zmq.POLLIN)
        if self._replay is not None:
            poller.register(self._replay, zmq.POLLIN)
        sequence = 0
        while True:
            ready = dict(poller.poll())
            if self._inbox in ready:
                payload = self._inbox.recv()
                if not payload:
                    return
                number = sequence.to_bytes(8, "big")
                self._pub.send_multipart((self._topic, number, payload))
                self._buffer.append((number, payload))
                sequence += 1
            if self._replay is not None and self._replay in ready:
                self._answer(self._replay)

    def _answer(self, replay: zmq.Socket[bytes]) -> None:
        """Sends all batches from the asked one on that are still kept, then the end; drops what is no question."""
        frames = replay.recv_multipart()
        if len(frames) != 3 or len(frames[2]) != 8:
            logger.warning("dropped a replay request of %d parts; hint: send 8 bytes, big-endian", len(frames))
            return
        client, _, first = frames
        for number, payload in self._buffer:
            if number >= first:
                replay.send_multipart((client, b"", self._topic, number, payload))
        replay.send_multipart((client, b"", b"", _END_OF_REPLAY, b""))


def check_kv_events(config: KVEventsConfig) -> None:
    """Checks that events can be published before a model is loaded.

    Raises:
        ConfigError: They are on, but pyzmq is not installed.
    """
    if config.is_on and importlib.util.find_spec("zmq") is None:
        raise ConfigError(
            "`kv_events_config` needs pyzmq, which is not installed\nhint: pip install 'llm-oxide[events]'"
        )


def publish_kv_events(engine: AsyncEngine, publisher: KVEventPublisher) -> None:
    """Publishes the events of an engine that has not started, from an empty cache on, until it is shut down."""
    core = engine.session.engine
    translate = _translator(core.limits.block_size, core.adapters.name_of)
    core.core.take_block_events()  # starts the record
    publisher.publish([AllBlocksCleared()])  # a server of the same name may have been there before
    core.block_listener = lambda events: publisher.publish([translate(event) for event in events])
    engine.on_shutdown = publisher.close


def _translator(
    block_size: int, name_of: Callable[[int], str]
) -> Callable[[tuple[list[int], int | None, list[int], int] | list[int]], Event]:
    def translate(event: tuple[list[int], int | None, list[int], int] | list[int]) -> Event:
        if isinstance(event, list):
            return BlockRemoved(event, _MEDIUM, 0)
        hashes, parent, token_ids, adapter = event
        name = name_of(adapter) if adapter else None
        keys: Iterable[tuple[Any, ...] | None] = [None if name is None else (name,)] * len(hashes)
        number = adapter or None
        return BlockStored(hashes, parent, token_ids, block_size, number, _MEDIUM, name, list(keys), 0, _LAYERS)

    return translate


def _is_bound(endpoint: str) -> bool:
    """Whether to listen at an address rather than connect to it, as vLLM decides."""
    return "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))
