"""Answers whose tokens are cut at any bytes: each stream's events add up to the unstreamed answer, in order.

The app runs here, without a port; a model says the same texts in tokens that are cut differently each time.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm._rust import ANSWER_FORMATS
from llm.inference import load_async_engine
from llm.serving import ServerConfig, create_app
from tests.scripted import STRIDE, write_cut
from tests.unit.serving_events import message_content, response_items

CITY = '{"city": "Zürich 語🙂"}'
CALLS = {
    "hermes": f'<tool_call>\n{{"name": "f", "arguments": {CITY}}}\n</tool_call>',
    "qwen_coder": "<tool_call>\n<function=f>\n<parameter=city>\nZürich 語🙂\n</parameter>\n</function>\n</tool_call>",
    "llama3_json": f'{{"name": "f", "parameters": {CITY}}}',
    "llama4_pythonic": "[f(city='Zürich 語🙂')]",
    "mistral": f"[TOOL_CALLS]f[ARGS]{CITY}",
    "deepseek": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{CITY}<｜tool▁call▁end｜>",
    "json": f'[{{"name": "f", "arguments": {CITY}}}]',
}
WITHOUT_MARKERS = ("llama3_json", "llama4_pythonic", "json")  # nothing but reasoning comes before their calls
THINKS = "<think>Où? 語</think>"
FORMATS = [name for name, _ in ANSWER_FORMATS]
TEXT = "Grüße 🙂 aus Zürich, 語 und é語 sind Zeichen."
# What the schema forces, and every other part a text that is free, none of whose tokens fits into what is forced.
OBJECT = ['{"größe": ["', "語 und 🙂é", '", "', "🙂é語", '"], "n": -12}']
NUM_CUTS = 3
NUM_OBJECTS = 8
SCHEMA = {
    "type": "object",
    "properties": {"größe": {"type": "array", "items": {"type": "string"}}, "n": {"type": "integer"}},
    "required": ["größe", "n"],
    "additionalProperties": False,
}


def spoken(name: str) -> str:
    return THINKS + ("" if name in WITHOUT_MARKERS else "Ich sehe 🙂\n") + CALLS[name]


SPOKEN = [*(spoken(name) for name in FORMATS), TEXT]


def cut(text: str, num_cuts: int, source: random.Random) -> list[bytes]:
    """The text's bytes in pieces that end at random borders of bytes."""
    content = text.encode()
    borders = sorted(source.sample(range(1, len(content)), min(num_cuts, len(content) - 1)))
    return [content[start:end] for start, end in zip([0, *borders], [*borders, len(content)], strict=True)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says each text in tokens of a byte or two, and in longer ones."""
    source = random.Random(0)
    scripts = [
        cut(text, min(STRIDE - 2, len(text.encode()) - 1) // (n + 1), source)
        for text in SPOKEN
        for n in range(NUM_CUTS)
    ]
    scripts.append([b"."])  # room for the last answer
    return write_cut(tmp_path_factory.mktemp("checkpoints") / "tiny", scripts)


@pytest.fixture(scope="module")
def object_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says an object: what is free in tokens of any length, the rest byte by byte, as its tokenizer cuts it."""
    source = random.Random(0)
    scripts = [
        [
            piece
            for number, part in enumerate(OBJECT)
            for piece in cut(part, source.randint(0, 8) if number % 2 else len(part.encode()), source)
        ]
        for _ in range(NUM_OBJECTS)
    ]
    scripts.append([b"."])
    return write_cut(tmp_path_factory.mktemp("checkpoints") / "object", scripts)


@asynccontextmanager
async def client_of(checkpoint: Path, tool_parser: str) -> AsyncIterator[httpx.AsyncClient]:
    engine = load_async_engine(checkpoint)
    engine.session.tool_parser = tool_parser
    app = create_app(lambda: engine, model_name="tiny", config=ServerConfig())
    await app.services.start()
    await app.services.engine.settled.wait()
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
        yield client
    await app.services.stop()


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The answer, and the events of the same answer as a stream."""
    responses = await asyncio.gather(
        *(client.post(path, json={"model": "tiny"} | body | {"stream": stream}) for stream in (False, True))
    )
    assert [response.status_code for response in responses] == [200, 200], [response.text for response in responses]
    lines = [line.removeprefix("data: ") for line in responses[1].text.splitlines() if line.startswith("data: ")]
    return responses[0].json(), [json.loads(line) for line in lines if line != "[DONE]"]


def chat_message(chunks: Sequence[Any]) -> tuple[dict[str, Any], str]:
    """The message that a client builds from chunks, and why it ended."""
    message: dict[str, Any] = {"reasoning": "", "content": "", "tool_calls": []}
    order = []
    for chunk in chunks:
        [choice] = chunk["choices"]
        delta = choice["delta"]
        order += [name for name in message if delta.get(name)]
        for name in ("reasoning", "content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls") or []:
            assert ("id" in call) == (call["index"] == len(message["tool_calls"]))
            if "id" in call:
                message["tool_calls"].append(["", ""])
            message["tool_calls"][call["index"]][0] += call["function"].get("name", "")
            message["tool_calls"][call["index"]][1] += call["function"].get("arguments", "")
    assert order == sorted(order, key=list(message).index), "reasoning, then text, then calls"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert set(reasons[:-1]) == {None}
    return message, reasons[-1]


def whole_message(choice: Any) -> tuple[dict[str, Any], str]:
    message = choice["message"]
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls") or []]
    texts = {name: message.get(name) or "" for name in ("reasoning", "content")}
    return texts | {"tool_calls": calls}, choice["finish_reason"]


def without_ids(items: Sequence[Any]) -> list[Any]:
    return [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in items]


def scripts_of(text: str) -> list[dict[str, Any]]:
    first = SPOKEN.index(text) * NUM_CUTS
    return [{"chat_template_kwargs": {"script": first + n}} for n in range(NUM_CUTS)]


USER = {"role": "user", "content": "Go"}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


async def check_chat(client: httpx.AsyncClient, fields: dict[str, Any]) -> Any:
    whole, chunks = await ask(client, "/v1/chat/completions", {"messages": [USER]} | fields)
    assert chat_message(chunks) == whole_message(whole["choices"][0])
    return whole_message(whole["choices"][0])


async def check_response(client: httpx.AsyncClient, fields: dict[str, Any]) -> Any:
    whole, events = await ask(client, "/v1/responses", {"input": "Go"} | fields)
    items, texts = response_items(events)
    assert without_ids(items) == without_ids(whole["output"])
    assert events[-1]["type"] == "response.completed"
    return texts


async def check_message(client: httpx.AsyncClient, fields: dict[str, Any]) -> Any:
    whole, events = await ask(client, "/v1/messages", {"messages": [USER], "max_tokens": STRIDE} | fields)
    assert without_ids(message_content(events)) == without_ids(whole["content"])
    ending = {name: whole[name] for name in ("stop_reason", "stop_sequence")}
    assert events[-2]["delta"] == ending
    return [*(block.get("thinking") or block.get("text") or block.get("input") for block in whole["content"])], ending


@pytest.mark.parametrize("name", FORMATS)
def test_calls_and_reasoning_are_the_same_however_tokens_are_cut(checkpoint: Path, name: str) -> None:
    chat = {"tools": [{"type": "function", "function": FUNCTION}]}
    responses = {"tools": [{"type": "function", "strict": False} | FUNCTION]}
    messages = {"tools": [{"name": "f", "input_schema": FUNCTION["parameters"]}]}
    said = "" if name in WITHOUT_MARKERS else "Ich sehe 🙂"

    async def check(client: httpx.AsyncClient, script: dict[str, Any]) -> None:
        message, finish_reason = await check_chat(client, chat | script)
        [(called, arguments)] = message.pop("tool_calls")
        assert (called, json.loads(arguments), finish_reason) == ("f", json.loads(CITY), "tool_calls")
        assert message == {"reasoning": "Où? 語", "content": said}
        *texts, arguments = await check_response(client, responses | script)
        assert (texts, json.loads(arguments)) == (["Où? 語", *([said] if said else [])], json.loads(CITY))
        blocks, ending = await check_message(client, messages | script)
        assert blocks == ["Où? 語", *([said] if said else []), json.loads(CITY)]
        assert ending == {"stop_reason": "tool_use", "stop_sequence": None}

    async def check_all() -> None:
        async with client_of(checkpoint, name) as client:
            await asyncio.gather(*(check(client, script) for script in scripts_of(spoken(name))))

    asyncio.run(check_all())


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ([], TEXT),
        (["é語 sind", "語 und é"], TEXT[: TEXT.index("語 und")]),
        (["🙂"], "Grüße "),
        (["é語"], TEXT[: TEXT.index("é語")]),
        (["🙂🙂", "語!"], TEXT),
    ],
    ids=["none", "longer first", "four bytes", "two characters", "beginnings only"],
)
def test_stop_strings_and_texts_are_the_same_however_tokens_are_cut(
    checkpoint: Path, stop: list[str], expected: str
) -> None:
    async def check(client: httpx.AsyncClient, script: dict[str, Any]) -> None:
        message, finish_reason = await check_chat(client, {"stop": stop} | script)
        assert (message["content"], finish_reason) == (expected, "stop")
        prompt = "." * (script["chat_template_kwargs"]["script"] * STRIDE + 1)
        completion = {"prompt": prompt, "stop": stop, "max_tokens": STRIDE}
        whole, chunks = await ask(client, "/v1/completions", completion)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"] == expected
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
        assert whole["choices"][0]["finish_reason"] == "stop"
        if not stop:
            assert await check_response(client, script) == [expected]
        blocks, ending = await check_message(client, {"stop_sequences": stop} | script)
        found = next((text for text in stop if expected + text == TEXT[: len(expected + text)]), None)
        assert blocks == [expected]
        assert ending == {"stop_reason": "stop_sequence" if found else "end_turn", "stop_sequence": found}

    async def check_all() -> None:
        async with client_of(checkpoint, "none") as client:
            await asyncio.gather(*(check(client, script) for script in scripts_of(TEXT)))

    asyncio.run(check_all())


def test_json_of_a_schema_is_the_same_however_tokens_are_cut(object_checkpoint: Path) -> None:
    text = "".join(OBJECT)
    form = {"type": "json_schema", "json_schema": {"name": "o", "schema": SCHEMA}}
    responses = {"text": {"format": {"type": "json_schema", "name": "o", "schema": SCHEMA}}}
    messages = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}

    async def check(client: httpx.AsyncClient, script: dict[str, Any]) -> None:
        message, finish_reason = await check_chat(client, {"response_format": form} | script)
        assert (message["content"], finish_reason) == (text, "stop")
        assert await check_response(client, responses | script) == [text]
        assert (await check_message(client, messages | script))[0] == [text]

    async def check_all() -> None:
        scripts = [{"chat_template_kwargs": {"script": number}} for number in range(NUM_OBJECTS)]
        async with client_of(object_checkpoint, "none") as client:
            await asyncio.gather(*(check(client, script) for script in scripts))

    asyncio.run(check_all())


def test_forced_text_in_other_tokens_is_the_same_streamed(tmp_path: Path) -> None:
    """The model wants other cuts than the tokenizer's for what the schema forces, and gets none of them."""
    source = random.Random(0)
    scripts = [[b'{"', *cut("".join(OBJECT)[2:], num_cuts, source)] for num_cuts in (5, 15, 25)]
    model = write_cut(tmp_path / "other", [*scripts, [b"."]])
    form = {"type": "json_schema", "json_schema": {"name": "o", "schema": SCHEMA}}
    fields = {"response_format": form, "temperature": 0, "max_tokens": 60}

    async def check_all() -> None:
        wanted = [{"chat_template_kwargs": {"script": number}} for number in range(len(scripts))]
        async with client_of(model, "none") as client:
            answers = await asyncio.gather(*(check_chat(client, fields | script) for script in wanted))
        assert [message["content"][:11] for message, _ in answers] == ['{"größe": ['] * len(scripts)

    asyncio.run(check_all())
