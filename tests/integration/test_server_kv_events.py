"""Events of the cache, as a router reads them from a real server over ZeroMQ."""

import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from llm.errors import ConfigError
from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
from llm.serving.kv_events import check_kv_events
from llm.settings.kv_events import KVEventsConfig
from llm.settings.server import load_server_config
from tests.adapter_files import write_adapter
from tests.integration.server_client import DEADLINE_S, metric

zmq = pytest.importorskip("zmq")

BLOCK_SIZE, NUM_BLOCKS = 16, 32
TOPIC = "kv@127.0.0.1:8000@tiny"
TIMEOUT_MS = 1000
END = (-1).to_bytes(8, "big", signed=True)
STORED_KEYS = {
    *("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"),
    *("extra_keys", "group_idx", "kv_cache_spec_kind"),
}


class Router:
    """Knows the text up to each block that a server has, from its events alone."""

    def __init__(self, context: Any, replay_address: str) -> None:
        self.replay_address = replay_address
        self.socket = context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.subscribe(TOPIC)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.texts: dict[int, tuple[str | None, tuple[int, ...] | None]] = {}
        self.messages: list[list[bytes]] = []
        self.removed: list[int] = []
        self.num_live = 0

    def follow(self, server: ServerHandle) -> None:
        """Reads until it knows as many blocks as the server says it has."""
        num_blocks = metric(server, "llm_blocks_cached")
        deadline = time.monotonic() + DEADLINE_S
        while len(self.texts) != num_blocks or self.socket.poll(0):
            assert time.monotonic() < deadline, f"{len(self.texts)} blocks are known, the server has {num_blocks}"
            if self.socket.poll(TIMEOUT_MS):
                self.num_live += 1
                self.take(self.socket.recv_multipart())
            else:
                self.catch_up()

    def catch_up(self) -> None:
        for missed in replayed(self.replay_address, len(self.messages)):
            self.apply(missed)

    def take(self, message: list[bytes]) -> None:
        """Takes a message, after those that it missed."""
        if int.from_bytes(message[1], "big") > len(self.messages):
            self.catch_up()
        if int.from_bytes(message[1], "big") == len(self.messages):
            self.apply(message)

    def apply(self, message: list[bytes]) -> None:
        topic, number, payload = message
        assert (topic.decode(), int.from_bytes(number, "big")) == (TOPIC, len(self.messages))
        self.messages.append(message)
        written_s, events, rank = msgspec.msgpack.decode(payload)
        assert (type(written_s), rank) == (float, 0)
        for event in events:
            getattr(self, event["type"])(event)

    def AllBlocksCleared(self, event: dict[str, Any]) -> None:  # noqa: N802 - the events' own names
        assert event.keys() == {"type"}
        self.texts.clear()

    def BlockRemoved(self, event: dict[str, Any]) -> None:  # noqa: N802
        assert (event.keys(), event["medium"]) == ({"type", "block_hashes", "medium", "group_idx"}, "GPU")
        for block_hash in event["block_hashes"]:
            del self.texts[block_hash]
        self.removed += event["block_hashes"]

    def BlockStored(self, event: dict[str, Any]) -> None:  # noqa: N802
        assert (event.keys(), event["block_size"], event["medium"]) == (STORED_KEYS, BLOCK_SIZE, "GPU")
        name = event["lora_name"]
        keys = [None if name is None else [name]] * len(event["block_hashes"])
        assert (event["lora_id"], event["extra_keys"]) == (name and 1, keys)
        parent = event["parent_block_hash"]
        text = () if parent is None else self.texts.get(parent, (name, None))[1]
        for index, block_hash in enumerate(event["block_hashes"]):
            # Without its predecessor a block can't be reached, and its text isn't known.
            if text is not None:
                text += tuple(event["token_ids"][index * BLOCK_SIZE :][:BLOCK_SIZE])
            self.texts[block_hash] = (name, text)

    def predict(self, prompt: list[int], name: str | None = None) -> int:
        known = set(self.texts.values())
        lengths = range(BLOCK_SIZE, len(prompt), BLOCK_SIZE)  # the last token is always computed
        return max(takewhile(lambda length: (name, tuple(prompt[:length])) in known, lengths), default=0)


@pytest.fixture(scope="module")
def router(replay_address: str) -> Iterator[Router]:
    context = zmq.Context()
    router = Router(context, replay_address)
    yield router
    context.destroy(linger=0)


@pytest.fixture(scope="module")
def replay_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('zmq') / 'replay'}"


@pytest.fixture(scope="module")
def server(
    checkpoint: Path, router: Router, replay_address: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerHandle]:
    adapter = write_adapter(tmp_path_factory.mktemp("adapters") / "one", checkpoint, seed=1)
    events = KVEventsConfig(
        enable_kv_cache_events=True,
        endpoint=f"tcp://127.0.0.1:{router.port}",
        replay_endpoint=replay_address,
        topic=TOPIC,
    )
    token_bytes = 2 * 2 * 16 * 4  # layers, keys and values, one head's width, fp32
    limits = EngineConfig(max_model_len=300, kv_cache_memory_bytes=NUM_BLOCKS * BLOCK_SIZE * token_bytes)
    config = ServerConfig(port=0, adapters=(f"one={adapter}",), engine=limits, kv_events_config=events)
    with ServerHandle(checkpoint, config) as handle:
        assert metric(handle, "llm_blocks_total") == NUM_BLOCKS
        yield handle


def ask(server: ServerHandle, prompt: list[int], model: str = "tiny") -> tuple[int, list[int]]:
    """Returns the number of the prompt's tokens that came from the cache, and the whole text's tokens."""
    body = {"model": model, "prompt": prompt, "max_tokens": 24, "ignore_eos": True, "return_token_ids": True, "seed": 1}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60, trust_env=False).json()
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"], [*prompt, *answer["choices"][0]["token_ids"]]


def prompt_of(seed: int, length: int) -> list[int]:
    return [(seed * 31 + position * position) % 250 for position in range(length)]


def test_a_router_predicts_what_the_next_request_finds_in_the_cache(server: ServerHandle, router: Router) -> None:
    router.follow(server)
    first = prompt_of(1, 70)
    assert router.predict(first) == 0
    cached, text = ask(server, first)
    router.follow(server)
    turns = [first, [*text, *prompt_of(2, 20)], [*first[:40], *prompt_of(3, 40)], prompt_of(4, 50)]
    predicted = []
    for turn in turns:
        predicted.append(router.predict(turn))
        cached, _ = ask(server, turn)
        assert cached == predicted[-1]
        router.follow(server)
    # The whole prompt, prompt and answer but the last token, the common beginning, and nothing.
    assert predicted == [64, 80, 32, 0]


def test_an_adapter_s_blocks_are_its_own(server: ServerHandle, router: Router) -> None:
    prompt = prompt_of(9, 40)
    for name in (None, "one"):
        assert router.predict(prompt, name) == 0
        assert ask(server, prompt, name or "tiny")[0] == 0
        router.follow(server)
        assert router.predict(prompt, name) == 32


def test_blocks_given_to_other_texts_are_removed(server: ServerHandle, router: Router) -> None:
    kept = prompt_of(20, 100)
    ask(server, kept)
    router.follow(server)
    router.removed.clear()
    assert router.predict(kept) == 96
    for seed in range(21, 25):
        prompt = prompt_of(seed, 200)
        predicted = router.predict(prompt)
        assert ask(server, prompt)[0] == predicted
        router.follow(server)
    assert len(router.removed) > NUM_BLOCKS / 2
    assert router.predict(kept) == ask(server, kept)[0] < 96
    router.follow(server)


def replayed(address: str, first: int) -> list[list[bytes]]:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, round(1000 * DEADLINE_S))
    socket.connect(address)
    socket.send_multipart([b"", first.to_bytes(8, "big")])
    messages = []
    while (parts := socket.recv_multipart())[2] != END:
        messages.append(parts[1:])
    assert parts == [b"", b"", END, b""]
    context.destroy(linger=0)
    return messages


def test_missed_batches_are_replayed_by_their_numbers(
    server: ServerHandle, router: Router, replay_address: str
) -> None:
    router.follow(server)
    assert len(router.messages) > 10
    for first in (0, 7, len(router.messages)):
        assert replayed(replay_address, first) == router.messages[first:]
    assert router.num_live > len(router.messages) / 2
    late = Router(context := zmq.Context(), replay_address)
    late.take(router.messages[-1])
    assert (late.texts, late.messages) == (router.texts, router.messages)
    context.destroy(linger=0)


def test_a_replay_socket_survives_what_is_no_question(server: ServerHandle, replay_address: str) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(replay_address)
    for parts in ([b""], [b"", b"7"], [b"", b"12345678", b"more"]):
        socket.send_multipart(parts)
    assert len(replayed(replay_address, 0)) == len(replayed(replay_address, 1)) + 1
    context.destroy(linger=0)


def test_settings_are_those_of_vllm_s_option(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_server_config(
        None,
        {},
        {
            "LLM_SERVER__KV_EVENTS_CONFIG__ENABLE_KV_CACHE_EVENTS": "true",
            "LLM_SERVER__KV_EVENTS_CONFIG__TOPIC": TOPIC,
        },
    ).kv_events_config
    assert (config.is_on, config.endpoint, config.topic) == (True, "tcp://*:5557", TOPIC)
    assert not KVEventsConfig().is_on
    assert not KVEventsConfig(enable_kv_cache_events=True, publisher="null").is_on
    with pytest.raises(ConfigError, match="did you mean `enable_kv_cache_events`"):
        load_server_config(None, {"kv_events_config": {"enable_kv_cache_event": True}}, {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs pyzmq, .*\nhint: pip install 'llm-oxide\[events\]'"):
        check_kv_events(config)
    check_kv_events(KVEventsConfig())
