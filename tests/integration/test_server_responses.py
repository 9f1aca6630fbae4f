"""The Responses API against a real server with OpenAI's own client: answers, events, stored conversations."""

import signal
import sqlite3
from typing import Literal

import httpx
import openai
import pydantic
import pytest

from llm.serving import ServerConfig, ServerHandle
from tests.integration.server_client import CONTEXT, MESSAGES, is_idle, metric, tokens_until_idle, wait_until

BODY = {"model": "tiny", "input": MESSAGES[0]["content"], "max_output_tokens": 24}
FREE = {"seed": 1, "ignore_eos": True}
LONG = {"max_output_tokens": 6000, "extra_body": {"seed": 1, "ignore_eos": True, "min_tokens": 6000}}


def respond(client, **fields):
    return client.responses.create(**BODY | {"extra_body": FREE} | fields)


def test_response_has_the_text_of_the_same_chat(client):
    response = respond(client, instructions="Be brief.", metadata={"a": "b"})
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=24, extra_body=FREE)
    assert response.output_text == chat.choices[0].message.content
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (chat.usage.prompt_tokens, 24)
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    assert (response.tools, response.tool_choice, response.store if hasattr(response, "store") else True) == (
        [],
        "auto",
        True,
    )


def test_events_come_in_order_and_build_the_whole_response(client):
    whole = respond(client)
    events = list(respond(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert "".join(event.delta for event in events[4:-4]) == events[-4].text == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    assert events[-2].item == events[-1].response.output[0]


def test_stream_helper_and_stop_of_the_model(client, server):
    with client.responses.stream(model="tiny", input="Hi", extra_body={"seed": 3, "logit_bias": {"0": 0}}) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.status == "completed"
    assert final.output_text == text
    assert final.completed_at >= final.created_at


class Verdict(pydantic.BaseModel):
    verdict: Literal["guilty"]
    years: int


def test_parse_returns_what_the_schema_asks_for(client):
    response = client.responses.parse(
        model="tiny", input="Well?", text_format=Verdict, max_output_tokens=60, extra_body={"seed": 1}
    )
    assert response.status == "completed"
    assert response.output_parsed.verdict == "guilty"
    assert response.text.format.name == "Verdict"
    with pytest.raises(openai.BadRequestError) as error:
        respond(client, text={"format": {"type": "json_schema", "name": "x", "schema": {"$ref": "#/nowhere"}}})
    assert error.value.param == "text.format.schema"


def test_log_probabilities_are_those_of_the_chat(client):
    response = respond(client, include=["message.output_text.logprobs"], top_logprobs=2)
    chat = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=24, logprobs=True, top_logprobs=2, extra_body=FREE
    )
    ours = [(entry.token, entry.logprob, len(entry.top_logprobs)) for entry in response.output[0].content[0].logprobs]
    assert ours == [(entry.token, entry.logprob, 2) for entry in chat.choices[0].logprobs.content]
    events = list(respond(client, include=["message.output_text.logprobs"], top_logprobs=2, stream=True))
    streamed = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert [entry.token for entry in streamed] == [token for token, _, _ in ours][: len(streamed)]


def test_conversation_goes_on_from_a_stored_response(client):
    first = respond(client, instructions="Not kept.")
    second = respond(client, input="And then?", previous_response_id=first.id)
    third = respond(client, input="And then?", previous_response_id=second.id, store=False)
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And then?"},
    ]
    chat = client.chat.completions.create(model="tiny", messages=turns, max_tokens=24, extra_body=FREE)
    assert second.output_text == chat.choices[0].message.content
    items = respond(client, input=[*turns[:1], *first.output, turns[2]])
    assert items.output_text == second.output_text
    assert third.previous_response_id == second.id
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(third.id)
    reference = respond(client, input=[turns[0], {"type": "item_reference", "id": first.output[0].id}, turns[2]])
    assert reference.output_text == second.output_text


def test_stored_response_is_read_listed_and_deleted(client):
    items = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Three"}]},
    ]
    response = respond(client, input=items)
    assert client.responses.retrieve(response.id) == response
    page = client.responses.input_items.list(response.id, limit=2, order="asc")
    assert (len(page.data), page.has_more) == (2, True)
    assert [item.content[0].text for item in client.responses.input_items.list(response.id, order="asc", limit=1)] == [
        "One",
        "Two",
        "Three",
    ]
    assert client.responses.input_items.list(response.id).data[0].content[0].text == "Three"
    client.responses.delete(response.id)
    for read in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="not found"):
            read(response.id)
    with pytest.raises(openai.NotFoundError) as error:
        respond(client, previous_response_id=response.id)
    assert (error.value.param, error.value.code) == ("previous_response_id", "previous_response_not_found")


def test_background_response_is_followed_cancelled_and_kept(client, server):
    started = respond(client, background=True)
    assert started.status == "queued"
    wait_until(lambda: client.responses.retrieve(started.id).status == "incomplete")
    assert client.responses.retrieve(started.id).output_text == respond(client).output_text
    slow = respond(client, background=True, **LONG)
    assert metric(server, "llm_requests_in_flight") == 1
    wait_until(lambda: client.responses.retrieve(slow.id).output_text)
    cancelled = client.responses.cancel(slow.id)
    assert (cancelled.status, cancelled.output[0].status) == ("cancelled", "incomplete")
    assert client.responses.cancel(slow.id) == cancelled
    wait_until(lambda: is_idle(server))
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(respond(client).id)


def test_background_stream_is_joined_again_after_its_client_left(client, server):
    stream = respond(client, background=True, stream=True, **LONG)
    begun = [next(stream) for _ in range(8)]
    stream.close()
    assert metric(server, "llm_requests_running") == 1
    again = client.responses.retrieve(begun[0].response.id, stream=True, starting_after=4)
    assert [next(again) for _ in range(3)] == begun[5:8]
    client.responses.cancel(begun[0].response.id)
    assert next(again).sequence_number == 8
    wait_until(lambda: is_idle(server))


@pytest.mark.parametrize(("name", "value"), [("stream", "1822"), ("starting_after", "x")])
def test_query_of_another_type_is_refused_by_name(client, server, name, value):
    url = f"{server.base_url}/responses/{respond(client).id}?{name}={value}"
    assert httpx.get(url, trust_env=False).json()["error"]["param"] == name


def test_truncation_drops_the_oldest_turns(client):
    turns = [{"role": "user", "content": f"{number} " + "To be " * 800} for number in range(8)]
    with pytest.raises(openai.BadRequestError) as error:
        respond(client, input=turns)
    assert (error.value.param, error.value.code) == ("input", "context_length_exceeded")
    cut = respond(client, input=turns, truncation="auto")
    assert CONTEXT - 2000 < cut.usage.input_tokens < CONTEXT - 24


def test_wrong_and_foreign_requests_are_refused_by_name(client):
    for fields, param in (
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": []}, "input"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice.type"),
        ({"extra_body": {"conversation": "conv_1"}}, "conversation"),
        ({"extra_body": {"max_tokens": 3}}, "max_tokens"),
        ({"extra_body": {"messages": MESSAGES}}, "messages"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"include": ["everything"]}, "include[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"background": True, "store": False}, "store"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            client.responses.create(**BODY | fields)
        assert error.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**BODY | {"model": "other"})


def test_client_that_leaves_frees_its_blocks(client, server):
    stream = respond(client, stream=True, **LONG)
    assert tokens_until_idle(server, stream) < LONG["max_output_tokens"]


def test_store_in_a_file_outlives_a_killed_server_within_its_bounds(checkpoint, tmp_path):
    path = tmp_path / "responses.db"
    config = ServerConfig(port=0, response_store=str(path), response_store_max_count=3)
    with ServerHandle(checkpoint, config) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
        first, *rest = [respond(client, input=str(number)) for number in range(4)]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        running = respond(client, background=True, **LONG)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with ServerHandle(checkpoint, config) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
        assert [client.responses.retrieve(kept.id) for kept in rest[1:]] == rest[1:]
        failed = client.responses.retrieve(running.id)
        assert (failed.status, failed.error.code) == ("failed", "server_error")
        respond(client, previous_response_id=rest[1].id)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM responses").fetchone() == (3,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_responses_belong_to_the_key_that_created_them(checkpoint):
    with ServerHandle(checkpoint, ServerConfig(port=0, api_keys=("one", "two"))) as server:
        one, two = (openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0) for key in ("one", "two"))
        response = respond(one)
        assert one.responses.retrieve(response.id) == response
        for read in (two.responses.retrieve, two.responses.delete, two.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                read(response.id)
        with pytest.raises(openai.NotFoundError):
            respond(two, previous_response_id=response.id)


def test_stopping_server_fails_what_runs_in_the_background(checkpoint, tmp_path):
    config = ServerConfig(port=0, response_store=str(tmp_path / "responses.db"), grace_s=0.1)
    with ServerHandle(checkpoint, config) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
        running = respond(client, background=True, **LONG)
        wait_until(lambda: client.responses.retrieve(running.id).output_text)
        assert server.terminate() == 0
    with ServerHandle(checkpoint, config) as server:
        found = httpx.get(f"{server.base_url}/responses/{running.id}", trust_env=False).json()
    assert found["status"] == "failed"
    assert found["output"][0]["status"] == "incomplete"
