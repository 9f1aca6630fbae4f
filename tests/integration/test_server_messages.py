"""Anthropic's messages against a real server: streams, stop sequences, limits and counts."""

import httpx
import msgspec
import pytest

from tests.integration.server_client import CONTEXT, MESSAGES, is_idle, metric, wait_until

BODY = {"model": "tiny", "max_tokens": 24, "messages": MESSAGES, "seed": 1, "ignore_eos": True}


def post(server, path="/v1/messages", **fields):
    return httpx.post(f"{server.url}{path}", json=BODY | fields, timeout=60, trust_env=False)


def events_of(server, **fields):
    with httpx.stream(
        "POST", f"{server.url}/v1/messages", json=BODY | {"stream": True} | fields, timeout=60
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        frames = response.read().decode().strip().split("\n\n")
    pairs = [frame.split("\n") for frame in frames]
    events = [msgspec.json.decode(data.removeprefix("data: ")) for _, data in pairs]
    assert [name.removeprefix("event: ") for name, _ in pairs] == [event["type"] for event in events]
    return events


def text_of(message):
    return "".join(block["text"] for block in message["content"])


def prompt_tokens(usage):
    return usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_message_has_anthropics_shape_and_the_text_of_a_chat(server, client):
    message = post(server).json()
    chat = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=24, seed=1, extra_body={"ignore_eos": True}
    )
    assert text_of(message) == chat.choices[0].message.content
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "tiny")
    assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
    usage = message["usage"]
    assert prompt_tokens(usage) == chat.usage.prompt_tokens
    assert usage["output_tokens"] == 24


def test_stream_joins_to_the_whole_message(server):
    whole = post(server).json()
    events = events_of(server)
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(deltas) == text_of(whole)
    assert events[0]["message"]["usage"] == events[-2]["usage"] | {"output_tokens": 0}
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert prompt_tokens(events[-2]["usage"]) == prompt_tokens(whole["usage"])
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequence_that_came_is_named(server, stream):
    text = text_of(post(server, max_tokens=60).json())
    stop = text[20:22]
    fields = {"max_tokens": 60, "stop_sequences": ["never seen", stop]}
    if stream:
        ending = events_of(server, **fields)[-2]["delta"]
    else:
        ending = post(server, **fields).json()
        assert text_of(ending) == text[: text.index(stop)]
    assert (ending["stop_reason"], ending["stop_sequence"]) == ("stop_sequence", stop)


def test_limit_past_the_context_is_cut_to_it(server):
    prompt = [{"role": "user", "content": "To be " * 2000}]
    counted = post(server, "/v1/messages/count_tokens", messages=prompt).json()["input_tokens"]
    message = post(server, messages=prompt, max_tokens=CONTEXT).json()
    assert message["usage"]["output_tokens"] == CONTEXT - counted
    assert message["stop_reason"] == "model_context_window_exceeded"
    refused = post(server, messages=[{"role": "user", "content": "To be, " * 9000}], stream=True)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_count_is_that_of_the_prompt(server):
    fields = {"system": [{"type": "text", "text": "Be brief."}]}
    counted = post(server, "/v1/messages/count_tokens", **fields).json()
    usage = post(server, **fields).json()["usage"]
    assert counted == {"input_tokens": prompt_tokens(usage)}


def test_count_refuses_what_the_answer_would_refuse(server):
    fields = {"tools": [{"name": "look", "input_schema": {"type": "object"}}]}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        refused = post(server, path, **fields)
        error = refused.json()["error"]
        assert (refused.status_code, error["type"]) == (400, "invalid_request_error")
        assert error["message"].startswith("`tools` need a chat template that renders them")


def test_client_that_leaves_frees_its_blocks(server):
    body = BODY | {"max_tokens": 7000, "min_tokens": 7000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/messages", json=body, timeout=60) as response:
        arrivals = response.iter_bytes()
        next(arrivals)
        assert metric(server, "llm_requests_in_flight") == 1
    wait_until(lambda: is_idle(server))


def test_cached_prompt_is_counted_apart(server):
    prompt = [{"role": "user", "content": "Once more. " * 40}]
    counts = [post(server, messages=prompt).json()["usage"] for _ in range(2)]
    assert counts[0]["cache_read_input_tokens"] < counts[1]["cache_read_input_tokens"]
    assert prompt_tokens(counts[0]) == prompt_tokens(counts[1])


def test_answer_follows_the_schema_that_is_asked_for(server):
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    config = {"format": {"type": "json_schema", "schema": schema}}
    message = post(server, output_config=config, max_tokens=60, ignore_eos=False).json()
    assert msgspec.json.decode(text_of(message)) == {"n": 7}
    assert message["stop_reason"] == "end_turn"
    wrong = {"format": {"type": "json_schema", "schema": {"type": "object", "minimums": 1, "$ref": "#/nowhere"}}}
    refused = post(server, output_config=wrong)
    assert refused.status_code == 400
    assert "`output_config.format.schema`" in refused.json()["error"]["message"]
