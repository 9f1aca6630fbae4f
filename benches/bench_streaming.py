"""CPU time that a streamed token costs the server outside the model and the Rust core.

The real app answers over ASGI, with the real scheduler and sampler; only the model's logits are constant. A pause per
step, as a model takes one, shows the cost when the event loop keeps up with the engine and nothing can be batched.
"""

import argparse
import asyncio
import gc
import json
import time

import torch

from llm.inference import AsyncEngine, EngineConfig, Session, build_engine
from llm.models import DecoderModel
from llm.serving import create_app
from llm.settings.model import ModelConfig
from llm.tokenization import BPETokenizer, use_chat_template


class Stopwatch:
    """Passes calls through and adds up the CPU time of the thread inside them."""

    def __init__(self, inner, names):
        self._inner, self.spent_s = inner, 0.0
        for name in names:
            setattr(self, name, self._timed(getattr(inner, name)))

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def _timed(self, call):
        def timed(*arguments):
            began = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self.spent_s += time.thread_time() - began

        return timed


class ConstantRunner:
    """The same logits for every row, at once or after a pause."""

    def __init__(self, model, pause_s):
        self.model, self._pause_s = model, pause_s
        logits = torch.randn(model.config.vocab_size, generator=torch.Generator().manual_seed(1))
        self._logits = logits.repeat(256, 1)

    def run(self, plan):
        if self._pause_s:
            time.sleep(self._pause_s)
        return self._logits[: len(plan.logits_indices)]


def build(pause_s, num_streams):
    tokenizer = BPETokenizer.train_from_iterator(["To be, or not to be, that is the question. "], vocab_size=280)
    use_chat_template(tokenizer, "play")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
    )
    engine = build_engine(DecoderModel(config).eval(), tokenizer, EngineConfig(max_running_requests=num_streams))
    engine.runner = Stopwatch(ConstantRunner(engine.runner.model, pause_s), ["run"])
    engine.core = Stopwatch(engine.core, ["schedule", "update"])
    return engine


PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


async def ask(app, path, body):
    """One streamed request straight through ASGI; bytes and events that came."""
    sent = {"bytes": 0, "events": 0, "writes": 0}
    request = asyncio.Queue()
    request.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})

    async def send(message):
        piece = message.get("body", b"")
        sent["bytes"] += len(piece)
        sent["events"] += piece.count(b"\n\n")
        sent["writes"] += 1

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "raw_path": path.encode()}
    await app(scope, request.get, send)
    return sent


async def measure(endpoint, num_streams, max_tokens, pause_s, extra):
    engine = build(pause_s, num_streams)
    app = create_app(lambda: AsyncEngine(Session(engine)), model_name="tiny")
    incoming, outgoing = asyncio.Queue(), asyncio.Queue()
    lifespan = asyncio.create_task(app({"type": "lifespan"}, incoming.get, outgoing.put))
    await incoming.put({"type": "lifespan.startup"})
    await outgoing.get()
    await app.services.engine.settled.wait()
    assert app.services.engine.error is None, app.services.engine.error
    prompt = {"messages": [{"role": "user", "content": "To be"}]} if endpoint == "chat" else {"prompt": "To be"}
    body = {"model": "tiny", "stream": True, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    body |= prompt | extra
    await asyncio.gather(*(ask(app, PATHS[endpoint], body | {"max_tokens": 16}) for _ in range(num_streams)))
    gc.collect()
    gc.freeze()
    inside = engine.core.spent_s + engine.runner.spent_s
    began, began_wall = time.process_time(), time.perf_counter()
    found = await asyncio.gather(*(ask(app, PATHS[endpoint], body) for _ in range(num_streams)))
    total, wall = time.process_time() - began, time.perf_counter() - began_wall
    inside = engine.core.spent_s + engine.runner.spent_s - inside
    await incoming.put({"type": "lifespan.shutdown"})
    await outgoing.get()
    await lifespan
    tokens = num_streams * max_tokens
    return {
        "front_us": (total - inside) / tokens * 1e6,
        "core_us": inside / tokens * 1e6,
        "events": sum(one["events"] for one in found) / tokens,
        "writes": sum(one["writes"] for one in found) / tokens,
        "wall_us": wall / tokens * 1e6,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--pause-ms", type=float, nargs="+", default=[0.0, 4.0])
    parser.add_argument("--endpoints", nargs="+", default=["chat", "completions"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--extra", type=json.loads, default={})
    args = parser.parse_args()
    for endpoint in args.endpoints:
        for pause_ms in args.pause_ms:
            for streams in args.streams:
                runs = [
                    asyncio.run(measure(endpoint, streams, args.tokens, pause_ms / 1e3, args.extra))
                    for _ in range(args.repeats)
                ]
                best = min(runs, key=lambda run: run["front_us"])
                print(
                    f"{endpoint:12} pause {pause_ms:4.1f} ms  {streams:3} streams  "
                    + "  ".join(f"{name} {value:7.2f}" for name, value in best.items()),
                    flush=True,
                )


if __name__ == "__main__":
    main()
