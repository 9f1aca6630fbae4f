"""The kinds of requests that the soak test mixes, good and bad, and clients that vanish."""

import asyncio
import json
import random
from collections import Counter, deque

import httpx

MODEL = "tiny"
WORDS = ["to", "be", "or", "not", "that", "is", "the", "question", "sleep", "dream", "rub", "ay", "there"]
BUSY = {429, 503}
ENDLESS = {"model": MODEL, "ignore_eos": True}
KEPT_IDS = 400

# Method, path and body of requests that must be refused; a body of bytes is sent as it is.
BAD = [
    ("POST", "/v1/chat/completions", b'{"model": "tiny", "messages": ['),
    ("POST", "/v1/chat/completions", {"model": "another", "messages": [{"role": "user", "content": "a"}]}),
    ("POST", "/v1/chat/completions", {"model": MODEL, "messages": "To be"}),
    ("POST", "/v1/chat/completions", {"model": MODEL, "messages": []}),
    ("POST", "/v1/completions", {"model": MODEL, "prompt": "To be " * 4000}),
    ("POST", "/v1/completions", {"model": MODEL, "prompt": "To be", "temperature": -1}),
    ("POST", "/v1/completions", {"model": MODEL, "prompt": [999999]}),
    ("POST", "/v1/completions", {"model": MODEL, "prompt": "To be", "structured_outputs": {"regex": "(["}}),
    ("POST", "/v1/completions", b"x" * 300_000),
    ("POST", "/v1/embeddings", {"model": MODEL}),
    ("POST", "/v1/messages", {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}),
    ("POST", "/v1/responses", {"model": MODEL, "input": "a", "previous_response_id": "resp_none"}),
    ("GET", "/v1/responses/resp_none", None),
    ("DELETE", "/v1/responses/resp_none", None),
    ("GET", "/v1/chat/completions", None),
    ("POST", "/v1/nothing", {}),
]


class RefusedError(Exception):
    """The server answered no request of this kind: too busy, or the fault is noted."""


class Clients:
    """Sends requests and counts what came back.

    Attributes:
        counts: Number of answers per kind and status.
        faults: What no answer should be.
        ids: Ids of the latest stored responses.
    """

    def __init__(self, url, seed):
        self.http = httpx.AsyncClient(
            base_url=url, trust_env=False, timeout=120, limits=httpx.Limits(max_connections=64)
        )
        self.port = int(url.rsplit(":", 1)[1])
        self.random = random.Random(seed)
        self.counts, self.faults, self.ids = Counter(), [], deque(maxlen=KEPT_IDS)
        self.kind = ""

    def text(self, most=24):
        return " ".join(self.random.choices(WORDS, k=self.random.randint(1, most)))

    def messages(self):
        return [{"role": "user", "content": self.text()}]

    def length(self):
        return self.random.randint(4, 120)

    def judge(self, kind, status, body, good=(200,)):
        self.counts[kind, status] += 1
        if status in BUSY:
            raise RefusedError
        if status not in good:
            self.faults.append(f"{kind}: {status} {body[:300]}")
            raise RefusedError

    async def post(self, kind, path, body):
        answer = await self.http.post(path, json=body)
        self.judge(kind, answer.status_code, answer.text)
        return answer.json()

    async def stream(self, kind, path, body, most=None):
        """Reads a stream to its end, or vanishes after some lines."""
        async with self.http.stream("POST", path, json=body | {"stream": True}) as answer:
            if answer.status_code != 200:
                self.judge(kind, answer.status_code, (await answer.aread()).decode())
            self.judge(kind, 200, "")
            lines = [line async for line in limited(answer.aiter_lines(), most)]
        if most is None and any('"error":{' in line for line in lines):
            self.faults.append(f"{kind}: a stream ended with {lines[-3:]}")


async def limited(lines, most):
    number = 0
    async for line in lines:
        yield line
        number += 1
        if number == most:
            return


async def chat_stream(clients):
    body = ENDLESS | {"messages": clients.messages(), "max_tokens": clients.length()}
    await clients.stream("chat stream", "/v1/chat/completions", body | {"stream_options": {"include_usage": True}})


async def chat_whole(clients):
    body = ENDLESS | {"messages": clients.messages(), "max_tokens": clients.length(), "stop": ["zq", "be be"]}
    await clients.post("chat, n and stop", "/v1/chat/completions", body | {"n": clients.random.randint(1, 3)})


async def burst(clients):
    """More tokens at once than the cache holds, so that choices are preempted."""
    body = ENDLESS | {"prompt": clients.text(), "max_tokens": 200, "n": 8}
    await clients.post("completion, 8 choices", "/v1/completions", body)


async def completion(clients):
    body = ENDLESS | {"prompt": clients.text(), "max_tokens": clients.length(), "logprobs": 3}
    await clients.post("completion, logprobs", "/v1/completions", body)
    await clients.stream("completion stream", "/v1/completions", body | {"prompt": [clients.text(), clients.text()]})


async def scoring(clients):
    body = {"model": MODEL, "prompt": clients.text(), "max_tokens": 0, "echo": True, "logprobs": 2}
    await clients.post("echo scoring", "/v1/completions", body)


async def structured(clients):
    names = [f"{word}{clients.random.randint(0, 9999)}" for word in clients.random.sample(WORDS, 2)]
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0, "maximum": 9} for name in names},
        "required": names,
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body = {"model": MODEL, "messages": clients.messages(), "max_tokens": 100, "response_format": form}
    answer = await clients.post("structured output", "/v1/chat/completions", body)
    choice = answer["choices"][0]
    if choice["finish_reason"] == "stop" and set(json.loads(choice["message"]["content"])) != set(names):
        clients.faults.append(f"structured output: {choice} for {schema}")


async def tools(clients):
    parameters = {"type": "object", "properties": {"city": {"type": "string", "enum": WORDS}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": clients.random.choice(WORDS), "parameters": parameters}}
    body = {"model": MODEL, "messages": clients.messages(), "max_tokens": 100, "tools": [tool]}
    await clients.post("tools", "/v1/chat/completions", body | {"tool_choice": "required"})
    await clients.stream("tools stream", "/v1/chat/completions", body)


async def vectors(clients):
    texts = [clients.text(), clients.text()]
    await clients.post("embeddings", "/v1/embeddings", {"model": MODEL, "input": texts})
    await clients.post("rerank", "/v1/rerank", {"model": MODEL, "query": clients.text(), "documents": texts})


async def tokens(clients):
    found = await clients.post("tokenize", "/tokenize", {"model": MODEL, "prompt": clients.text()})
    await clients.post("detokenize", "/detokenize", {"model": MODEL, "tokens": found["tokens"]})


async def responses(clients):
    body = {"model": MODEL, "input": clients.text(), "max_output_tokens": 24, "ignore_eos": True}
    first = await clients.post("response", "/v1/responses", body)
    second = await clients.post("response, continued", "/v1/responses", body | {"previous_response_id": first["id"]})
    await clients.stream("response stream", "/v1/responses", body)
    clients.ids += [first["id"], second["id"]]
    if clients.random.random() < 0.5:
        answer = await clients.http.delete(f"/v1/responses/{first['id']}")
        clients.judge("response, deleted", answer.status_code, answer.text, (200, 404))


async def background(clients):
    body = {"model": MODEL, "input": clients.text(), "max_output_tokens": 150, "ignore_eos": True, "background": True}
    started = await clients.post("response in background", "/v1/responses", body)
    clients.ids.append(started["id"])
    if clients.random.random() < 0.5:
        answer = await clients.http.post(f"/v1/responses/{started['id']}/cancel")
        clients.judge("response, cancelled", answer.status_code, answer.text, (200, 400, 404, 409))


async def messages(clients):
    body = ENDLESS | {"messages": clients.messages(), "max_tokens": clients.length()}
    await clients.post("message", "/v1/messages", body)
    await clients.stream("message stream", "/v1/messages", body)


async def bad(clients):
    method, path, body = clients.random.choice(BAD)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    answer = await clients.http.request(method, path, content=content, headers={"content-type": "application/json"})
    clients.judge("bad request", answer.status_code, f"{method} {path} {answer.text}", range(400, 500))


async def vanish_in_stream(clients):
    body = ENDLESS | {"messages": clients.messages(), "max_tokens": 300}
    await clients.stream("vanished in a stream", "/v1/chat/completions", body, most=3)


async def vanish_in_body(clients):
    _, writer = await asyncio.open_connection("127.0.0.1", clients.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()
    clients.counts["vanished in a body", 0] += 1


async def scrape(clients):
    answer = await clients.http.get("/metrics")
    clients.judge("scrape", answer.status_code, answer.text)


KINDS = [
    *(chat_stream, chat_whole, burst, completion, scoring, structured, tools, vectors, tokens, responses, background),
    *(messages, bad, bad, vanish_in_stream, vanish_in_body, scrape),
]


async def client(clients, until, pause_s):
    """One client: a request of a random kind, a pause, and again."""
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        kind = clients.random.choice(KINDS)
        try:
            await kind(clients)
        except RefusedError:
            pass
        except httpx.HTTPError as error:
            clients.faults.append(f"{kind.__name__}: {error!r}")
        await asyncio.sleep(clients.random.expovariate(1 / pause_s))
