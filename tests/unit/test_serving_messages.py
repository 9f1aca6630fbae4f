"""Anthropic's messages: requests as chat requests, and answers as blocks and events."""

import asyncio
import threading
from itertools import pairwise

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.inference import AsyncEngine, Session, Usage, load_engine
from llm.inference.parts import Part
from llm.serving import ServerConfig, create_app
from llm.serving.answer_metrics import ServedModel
from llm.serving.answers.blocks import Ending
from llm.serving.answers.messages import MessageAnswer
from llm.serving.endpoints.conversations import Conversation, answer_events, framed
from llm.serving.metrics import ServerMetrics
from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.messages import MessagesRequest
from llm.serving.translation.messages import chat_body
from llm.tokenization import ChatTemplate, use_chat_template
from tests.unit.serving_events import message_content
from tests.unit.serving_parts import PARTS

USER = {"role": "user", "content": "Hi"}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}


def body_of(**fields):
    request = msgspec.convert({"model": "m", "max_tokens": 5, "messages": [USER]} | fields, MessagesRequest)
    return chat_body(request)


def messages_of(*messages, **fields):
    return body_of(messages=list(messages), **fields)["messages"]


def refusal(**fields):
    async def once():
        app = create_app(lambda: None, model_name="m", config=ServerConfig())
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/messages", json={"model": "m", "max_tokens": 5, "messages": [USER]} | fields)

    response = asyncio.run(once())
    answer = response.json()
    assert answer["type"] == "error"
    assert answer["request_id"] == response.headers["request-id"]
    return response.status_code, answer["error"]["type"], answer["error"]["message"]


def test_silence_opens_a_stream_and_is_filled_with_pings(tiny_checkpoint, monkeypatch):
    inner = load_engine(tiny_checkpoint)
    use_chat_template(inner.tokenizer, ChatTemplate("{{ messages[0].content }}"))
    run, gate = inner.runner.run, threading.Event()
    monkeypatch.setattr(inner.runner, "run", lambda plan: (gate.wait(), run(plan))[1])
    engine = AsyncEngine(Session(inner))
    engine.start()
    request = msgspec.convert({"model": "m", "max_tokens": 5, "messages": [USER]}, MessagesRequest)
    conversation = Conversation(
        chat=msgspec.convert(chat_body(request), ChatCompletionRequest),
        answer=MessageAnswer(request),
        names={},
        ping_s=0.01,
    )

    async def scenario():
        arrivals = answer_events(conversation, engine, ServerMetrics(engine.stats, ServedModel(name="m")))
        silent = [await anext(arrivals) for _ in range(4)]
        gate.set()
        rest = [event async for events in arrivals for event in events]
        return silent, rest

    silent, rest = asyncio.run(scenario())
    engine.shutdown()
    assert [[event.__struct_config__.tag for event in events] for events in silent] == [
        ["message_start", "ping"],
        [],
        ["ping"],
        [],
    ]
    assert silent[0][0].message.usage.input_tokens == rest[-2].usage.input_tokens > 0
    assert "message_start" not in {event.__struct_config__.tag for event in rest}
    assert rest[-1].__struct_config__.tag == "message_stop"


def test_parameters_have_their_names_of_chat_requests():
    body = body_of(stop_sequences=["x"], temperature=0.5, top_k=3, seed=7)
    assert {name: body[name] for name in ("max_tokens", "stop", "temperature", "top_k", "seed")} == {
        "max_tokens": 5,
        "stop": ["x"],
        "temperature": 0.5,
        "top_k": 3,
        "seed": 7,
    }


def test_system_text_comes_first_and_leaves_out_the_billing_line():
    blocks = [{"type": "text", "text": "x-anthropic-billing-header: cc=1;"}, {"type": "text", "text": "Be kind."}]
    assert messages_of(USER, system=blocks) == [{"role": "system", "content": "Be kind."}, USER]
    assert messages_of(USER, system="Be kind.") == [{"role": "system", "content": "Be kind."}, USER]
    later = {"role": "system", "content": [{"type": "text", "text": "Now be brief."}]}
    assert messages_of(USER, later) == [USER, {"role": "system", "content": "Now be brief."}]


def test_neighbours_of_one_role_are_one_turn():
    assert messages_of(USER, {"role": "user", "content": "There"}) == [{"role": "user", "content": "Hi\n\nThere"}]


def test_calls_and_results_of_tools_are_chat_messages_in_order():
    call = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "é"}}
    assistant = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, call]}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a cat"}]}
    failed = {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True}
    user = {"role": "user", "content": [result, failed, {"type": "text", "text": "Well?"}]}
    assert messages_of(USER, assistant, user) == [
        USER,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at":"é"}'}}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "a cat"},
        {"role": "tool", "tool_call_id": "t2", "content": "no"},
        {"role": "user", "content": "Well?"},
    ]


def test_documents_and_search_results_are_quoted():
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    parts = {"type": "content", "content": [{"type": "text", "text": "P"}]}
    found = {"type": "search_result", "title": "S", "source": "u", "content": [{"type": "text", "text": "R"}]}
    content = [document, {"type": "document", "source": parts}, found]
    assert messages_of({"role": "user", "content": content}) == [{"role": "user", "content": "T\nD\n\nP\n\nS\nu\nR"}]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, {"tool_choice": None}),
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"type": "tool", "name": "look"}, {"tool_choice": {"type": "function", "function": {"name": "look"}}}),
        ({"type": "none"}, {"tool_choice": "none"}),
    ],
)
def test_tools_and_their_choice_are_those_of_chat_requests(choice, expected):
    body = body_of(tools=[TOOL], tool_choice=choice)
    function = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert {name: body[name] for name in expected} == expected


def test_thinking_effort_and_format_reach_the_chat_request():
    body = body_of(thinking={"type": "enabled", "budget_tokens": 1024})
    assert body["chat_template_kwargs"] == {"enable_thinking": True, "thinking": True}
    assert body_of(thinking={"type": "disabled"})["chat_template_kwargs"]["enable_thinking"] is False
    config = {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}}
    body = body_of(output_config=config)
    assert body["reasoning_effort"] == "high"
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_last_turn_of_the_assistant_is_continued():
    body = body_of(messages=[USER, {"role": "assistant", "content": "I"}])
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"stop": ["x"]}, "stop"),
        ({"n": 2}, "n"),
        ({"max_output_tokens": 2}, "max_output_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"temperature": 9}, "temperature"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]}]},
            "messages[0].content[0].source.type",
        ),
    ],
)
def test_what_is_wrong_or_unsupported_is_named_in_anthropics_form(fields, named):
    status, kind, message = refusal(**fields)
    assert (status, kind) == (400, "invalid_request_error")
    assert f"`{named}`" in message


def test_statuses_have_anthropics_types():
    assert refusal(model="other")[:2] == (404, "not_found_error")
    assert refusal()[:2] == (503, "overloaded_error")


def answer_of(parts, **fields):
    request = msgspec.convert({"model": "m", "max_tokens": 5, "messages": [USER]} | fields, MessagesRequest)
    answer = MessageAnswer(request)
    events = [
        *answer.started(Usage.of(3, 1)),
        *answer.add(parts),
        *answer.finish(Ending(finish_reason="stop", usage=Usage.of(3, 4))),
    ]
    return msgspec.to_builtins(answer.whole()), msgspec.to_builtins(events)


def without_ids(content):
    return [{name: value for name, value in block.items() if name != "id"} for block in content]


@given(st.lists(st.integers(0, 80)))
def test_any_cut_of_the_parts_gives_one_answer(borders):
    whole, _ = answer_of(PARTS)
    cut = []
    for part in PARTS:
        edges = [0, *sorted({border for border in borders if border < len(part.text)}), len(part.text)]
        pieces = [part.text] if part.kind == "call" else [part.text[a:b] for a, b in pairwise(edges)]
        cut += [Part(part.kind, part.call, piece) for piece in pieces]
    again, events = answer_of(cut)
    assert without_ids(again["content"]) == without_ids(whole["content"])
    assert without_ids(message_content(events)) == without_ids(whole["content"])
    kinds = [block["type"] for block in whole["content"]]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    assert whole["content"][1]["text"] == "\n\nI look now 🙂"
    assert whole["content"][2]["input"] == {"at": "é🙂", "n": 1}
    assert whole["stop_reason"] == events[-2]["delta"]["stop_reason"] == "tool_use"


def test_white_space_alone_is_text_and_hidden_thinking_is_empty():
    assert answer_of([Part("text", None, " \n")])[0]["content"] == [{"type": "text", "text": " \n"}]
    assert answer_of([])[0]["content"] == []
    whole, events = answer_of(PARTS[:2], thinking={"type": "adaptive", "display": "omitted"})
    assert whole["content"][0]["thinking"] == message_content(events)[0]["thinking"] == ""
    assert whole["content"][0]["signature"] == message_content(events)[0]["signature"] != ""


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ({"finish_reason": "stop"}, "end_turn"),
        ({"finish_reason": "stop", "stop_string": "x"}, "stop_sequence"),
        ({"finish_reason": "length"}, "max_tokens"),
        ({"finish_reason": "length", "is_full": True}, "model_context_window_exceeded"),
    ],
)
def test_stop_reasons_are_anthropics(ending, expected):
    answer = MessageAnswer(msgspec.convert({"model": "m", "max_tokens": 5, "messages": [USER]}, MessagesRequest))
    list(answer.finish(Ending(usage=Usage.of(1, 1), **ending)))
    assert (answer.whole().stop_reason, answer.whole().stop_sequence) == (expected, ending.get("stop_string"))


def test_events_are_framed_with_their_names():
    answer = MessageAnswer(msgspec.convert({"model": "m", "max_tokens": 5, "messages": [USER]}, MessagesRequest))
    events = framed(answer.finish(Ending(finish_reason="stop", usage=Usage.of(1, 1))))
    assert events.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
