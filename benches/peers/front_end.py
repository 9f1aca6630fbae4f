"""Two servers for `bench_frontend.py`: granian with the least app, and ours with an engine that answers at once.

Usage: python front_end.py plain|instant PORT [CHECKPOINT]
"""

import asyncio
import json
import sys

import torch
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from llm.inference import AsyncEngine, Session, load_engine
from llm.serving import create_app
from llm.settings.engine import EngineConfig

HOST = "127.0.0.1"
NUM_TOKENS = 16  # of a chat; the least app sends as many events
MAX_REQUESTS = 64
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


def events() -> list[bytes]:
    """The events of a chat, each as long as OpenAI's protocol makes it."""
    head = {"id": "chatcmpl-0123456789abcdef0123456789abcdef", "object": "chat.completion.chunk", "created": 1}
    choice = {"index": 0, "logprobs": None, "finish_reason": None}
    deltas = [{"role": "assistant", "content": ""}, *[{"content": " word"}] * NUM_TOKENS, {}]
    chunks = [head | {"model": "model", "choices": [choice | {"delta": delta}]} for delta in deltas]
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]


EVENTS = events()


async def plain(scope, receive, send):
    """Answers every request with the same stream."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    for event in EVENTS:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def lifespan(receive, send):
    """Says yes to the start and to the end."""
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


class ConstantRunner:
    """The same logits for every row."""

    def __init__(self, model):
        self.model = model
        logits = torch.randn(model.config.vocab_size, generator=torch.Generator().manual_seed(1))
        self._logits = logits.repeat(2 * MAX_REQUESTS, 1)

    def run(self, plan):
        return self._logits[: len(plan.logits_indices)]


def instant(checkpoint):
    """Our app: the scheduler, the sampler and the detokenizer are real, the model's logits are constant."""

    def load():
        engine = load_engine(checkpoint, config=EngineConfig(max_running_requests=MAX_REQUESTS))
        engine.runner = ConstantRunner(engine.runner.model)
        return AsyncEngine(Session(engine))

    return create_app(load, model_name="model")


def main():
    kind, port, *checkpoint = sys.argv[1:]
    app = plain if kind == "plain" else instant(*checkpoint)
    options = {"http": HTTPModes.http1, "websockets": False, "backlog": 1024}
    server = Server(app, address=HOST, port=int(port), interface=Interfaces.ASGI, **options)
    asyncio.run(server.serve())


if __name__ == "__main__":
    main()
