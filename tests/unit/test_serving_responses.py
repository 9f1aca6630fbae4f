"""Responses: requests as chat requests, and answers as items and events."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.inference import Usage
from llm.inference.parts import Part
from llm.serving.answers.blocks import Ending
from llm.serving.answers.responses import ResponseAnswer, new_response_id
from llm.serving.errors import bad_request, internal_error
from llm.serving.protocol.responses import ResponsesRequest
from llm.serving.translation.responses import chat_body, input_items, response_of_item
from llm.tokenization import SimpleCharacterTokenizer
from tests.unit.serving_events import response_items
from tests.unit.serving_parts import PARTS

TOKENIZER = SimpleCharacterTokenizer.train("abc é")
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
FUNCTION = {"name": "look", "parameters": {"type": "object"}, "strict": True}


def request_of(**fields):
    return msgspec.convert({"model": "m", "input": "Hi"} | fields, ResponsesRequest)


def body_of(**fields):
    request = request_of(**fields)
    return chat_body(request, input_items(request, "resp_0"))


def messages_of(*items, **fields):
    return body_of(input=list(items), **fields)["messages"]


def test_items_become_messages_with_the_assistants_in_one_turn():
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": 1}'}
    assert messages_of(
        {"type": "message", "role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        call,
        call | {"call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "a cat"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "a dog"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        instructions="Be brief.",
    ) == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": name, "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
                for name in ("c1", "c2")
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
        {"role": "tool", "tool_call_id": "c2", "content": "a dog"},
        {"role": "assistant", "content": "No."},
    ]


def test_parameters_have_their_names_of_chat_requests():
    schema = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    body = body_of(
        max_output_tokens=7,
        temperature=0.5,
        seed=3,
        reasoning={"effort": "high", "summary": "auto"},
        text={"format": schema, "verbosity": "low"},
        top_logprobs=2,
        metadata={"a": "b"},
        user="u",
    )
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
        "reasoning_effort": "high",
        "verbosity": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
        },
        "logprobs": True,
        "top_logprobs": 2,
    }
    assert body_of(text={"format": {"type": "json_object"}})["response_format"] == {"type": "json_object"}
    assert "response_format" not in body_of(text={"format": {"type": "text"}})


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, {}),
        ("required", {"tool_choice": "required"}),
        ({"type": "function", "name": "look"}, {"tool_choice": {"type": "function", "function": {"name": "look"}}}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]},
            {"tool_choice": "required"},
        ),
    ],
)
def test_tools_and_their_choice_are_those_of_chat_requests(choice, expected):
    tools = [TOOL, TOOL | {"name": "go"}] if choice is None else [TOOL]
    given_tools = [*tools, TOOL | {"name": "other"}] if isinstance(choice, dict) and "mode" in choice else tools
    body = body_of(tools=given_tools, tool_choice=choice, parallel_tool_calls=False)
    assert body["tools"] == [{"type": "function", "function": FUNCTION | {"name": tool["name"]}} for tool in tools]
    assert {name: body[name] for name in ("tool_choice",) if name in body} == expected


def test_functions_of_a_namespace_are_told_by_both_names():
    tools = [{"type": "namespace", "name": "home", "description": "d", "tools": [TOOL]}]
    call = {"type": "function_call", "call_id": "c", "namespace": "home", "name": "look", "arguments": "{}"}
    body = body_of(tools=tools, input=[call])
    assert body["tools"][0]["function"]["name"] == "home.look"
    assert body["messages"][0]["tool_calls"][0]["function"]["name"] == "home.look"
    answer = ResponseAnswer(request_of(tools=tools), "resp_0", TOKENIZER)
    list(answer.add([Part("call", 0, "home.look"), Part("call", 1, "other")]))
    items = msgspec.to_builtins(answer.whole().output)
    assert [(item["name"], item.get("namespace")) for item in items] == [("look", "home"), ("other", None)]


def test_ids_of_items_hold_the_id_of_their_response():
    response_id = new_response_id()
    [item] = input_items(request_of(), response_id)
    assert response_of_item(item.id) == response_id
    answer = ResponseAnswer(request_of(), response_id, TOKENIZER)
    list(answer.add([Part("text", None, "a")]))
    assert response_of_item(answer.whole().output[0].id) == response_id
    assert response_of_item("msg_elsewhere") is None


def answer_of(parts, finish_reason="stop"):
    answer = ResponseAnswer(request_of(), "resp_0", TOKENIZER)
    ending = Ending(finish_reason=finish_reason, usage=Usage.of(3, 4))
    events = [*answer.started(Usage.of(3, 1)), *answer.add(parts), *answer.finish(ending)]
    return msgspec.to_builtins(answer.whole()), msgspec.to_builtins(events)


@given(st.lists(st.integers(0, 80)))
def test_any_cut_of_the_parts_gives_one_answer(borders):
    whole, _ = answer_of(PARTS)
    cut = []
    for part in PARTS:
        edges = [0, *sorted({border for border in borders if border < len(part.text)}), len(part.text)]
        pieces = [part.text] if part.kind == "call" else [part.text[a:b] for a, b in pairwise(edges)]
        cut += [Part(part.kind, part.call, piece) for piece in pieces]
    again, events = answer_of(cut)
    items, texts = response_items(events)
    assert again["output"] == whole["output"] == items == events[-1]["response"]["output"]
    assert texts == ["Let me see. é", "\n\nI look now 🙂", '{"at": "é🙂", "n": 1}', "{}"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
    assert events[-1]["type"] == "response.completed"


def test_cut_answer_is_incomplete_in_its_last_item():
    whole, events = answer_of(PARTS[:2], "length")
    assert [item["status"] for item in whole["output"]] == ["completed", "incomplete"]
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert events[-1]["type"] == "response.incomplete"
    assert response_items(events)[0] == whole["output"]


@pytest.mark.parametrize(("error", "code"), [(internal_error(), "server_error"), (bad_request("x"), "invalid_prompt")])
def test_failed_answer_says_why(error, code):
    answer = ResponseAnswer(request_of(), "resp_0", TOKENIZER)
    kinds = [msgspec.to_builtins(event)["type"] for event in answer.failed(error)]
    assert kinds == ["response.created", "response.in_progress", "response.failed"]
    assert (answer.whole().status, answer.whole().error.code) == ("failed", code)
