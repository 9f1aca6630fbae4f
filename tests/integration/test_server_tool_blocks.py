"""Tools and reasoning in messages and responses: a model that says given texts, whole and as events."""

import httpx
import msgspec
import openai
import pytest

from llm.serving import ServerConfig, ServerHandle
from tests.scripted import write_scripted

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Verona", "days": [1, 2]}}\n</tool_call>'
TIDE = '<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call>'
SCRIPTS = [
    f"<think>\nIs it far?\n</think>\n\nLet me see.\n{CALL}\n{TIDE}",
    "It is fair.",
    "<think>on and on and on",
    "<think>\nIs it far?\n</think>\n\nIt is fair.",
]
INPUT = {"city": "Verona", "days": [1, 2]}
ARGUMENTS = '{"city": "Verona", "days": [1, 2]}'
SCHEMA = {"type": "object", "properties": {}}
MESSAGES_TOOLS = [{"name": name, "input_schema": SCHEMA} for name in ("weather", "tide")]
RESPONSES_TOOLS = [{"type": "function", "name": name, "parameters": SCHEMA} for name in ("weather", "tide")]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    path = write_scripted(tmp_path_factory.mktemp("checkpoints") / "tiny", SCRIPTS, special_tokens=["<think>"])
    with ServerHandle(path, ServerConfig(port=0)) as handle:
        yield handle


@pytest.fixture(scope="module")
def client(scripted):
    return openai.OpenAI(base_url=scripted.base_url, api_key="any", max_retries=0, timeout=60)


def message_of(server, script=0, **fields):
    body = {"model": "tiny", "max_tokens": 120, "messages": [{"role": "user", "content": "Go"}]}
    body |= {"tools": MESSAGES_TOOLS, "chat_template_kwargs": {"script": script}}
    response = httpx.post(f"{server.url}/v1/messages", json=body | fields, timeout=60, trust_env=False)
    assert response.status_code == 200, response.text
    return response


def streamed_message(server, script=0, **fields):
    """The blocks that the events of a stream add up to, and why it ended."""
    frames = message_of(server, script, stream=True, **fields).text.strip().split("\n\n")
    blocks = []
    for event in (msgspec.json.decode(frame.split("\ndata: ")[1]) for frame in frames):
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"] | {"json": ""})
        elif event["type"] == "content_block_delta":
            delta = {name: text for name, text in event["delta"].items() if name != "type"}
            ((name, text),) = delta.items()
            blocks[-1][name.removeprefix("partial_")] += text
        elif event["type"] == "message_delta":
            ending = event["delta"]
    for block in blocks:
        text = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = msgspec.json.decode(text)
    return blocks, ending


def without_ids(blocks):
    return [{name: value for name, value in block.items() if name != "id"} for block in blocks]


def test_message_holds_thinking_text_and_calls(scripted):
    whole = message_of(scripted).json()
    thinking, text, *calls = whole["content"]
    assert (thinking["type"], thinking["thinking"].strip()) == ("thinking", "Is it far?")
    assert thinking["signature"]
    assert (text["type"], text["text"].strip()) == ("text", "Let me see.")
    assert without_ids(calls) == [
        {"type": "tool_use", "name": "weather", "input": INPUT},
        {"type": "tool_use", "name": "tide", "input": {}},
    ]
    assert all(call["id"].startswith("toolu_") for call in calls)
    assert whole["stop_reason"] == "tool_use"
    blocks, ending = streamed_message(scripted)
    assert without_ids(blocks) == without_ids(whole["content"])
    assert ending == {"stop_reason": "tool_use", "stop_sequence": None}


def test_one_call_only_without_parallel_use(scripted):
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    blocks, _ = streamed_message(scripted, tool_choice=choice)
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use"]
    no_tools = message_of(scripted, tool_choice={"type": "none"}).json()
    assert [block["type"] for block in no_tools["content"]] == ["thinking", "text"]
    assert no_tools["stop_reason"] == "end_turn"


def test_results_of_tools_go_on_with_the_conversation(scripted):
    called = message_of(scripted).json()
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "fair"}
        for block in called["content"]
        if block["type"] == "tool_use"
    ]
    messages = [
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": called["content"]},
        {"role": "user", "content": results},
    ]
    answer = message_of(scripted, 1, messages=messages).json()
    assert [block["text"] for block in answer["content"]] == ["It is fair."]
    counted = httpx.post(
        f"{scripted.url}/v1/messages/count_tokens",
        json={"model": "tiny", "messages": messages, "tools": MESSAGES_TOOLS},
        trust_env=False,
    )
    assert counted.json()["input_tokens"] > 0


def test_thinking_that_a_limit_cuts_is_all_there_is(scripted):
    whole = message_of(scripted, 2, max_tokens=4).json()
    assert [block["type"] for block in whole["content"]] == ["thinking"]
    assert whole["stop_reason"] == "max_tokens"
    hidden = message_of(scripted, 0, thinking={"type": "adaptive", "display": "omitted"}).json()
    assert hidden["content"][0]["thinking"] == ""


def respond(client, script=0, **fields):
    options = {"model": "tiny", "input": "Go", "tools": RESPONSES_TOOLS, "max_output_tokens": 120}
    return client.responses.create(**options | fields, extra_body={"chat_template_kwargs": {"script": script}})


def test_response_holds_reasoning_text_and_calls(client):
    whole = respond(client)
    reasoning, message, weather, tide = whole.output
    assert reasoning.content[0].text.strip() == "Is it far?"
    assert (message.content[0].text.strip(), message.status) == ("Let me see.", "completed")
    assert (weather.type, weather.name, weather.arguments) == ("function_call", "weather", ARGUMENTS)
    assert (tide.name, tide.arguments) == ("tide", "{}")
    assert len({weather.call_id, tide.call_id}) == 2
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    events = list(respond(client, stream=True))
    final = events[-1].response
    assert events[-1].type == "response.completed"
    for ours, theirs in zip(final.output, whole.output, strict=True):
        assert ours.model_dump(exclude={"id", "call_id"}) == theirs.model_dump(exclude={"id", "call_id"})
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == ARGUMENTS + "{}"


def test_outputs_of_functions_go_on_with_a_stored_response(client):
    called = respond(client)
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "fair"}
        for item in called.output
        if item.type == "function_call"
    ]
    answer = respond(client, 1, input=outputs, previous_response_id=called.id)
    assert answer.output_text == "It is fair."
    sent = [
        {"role": "user", "content": "Go"},
        *(item.model_dump(exclude_none=True) for item in called.output),
        *outputs,
    ]
    assert respond(client, 1, input=sent, store=False).output_text == "It is fair."


def test_stream_helper_builds_calls(client):
    with client.responses.stream(
        model="tiny",
        input="Go",
        tools=RESPONSES_TOOLS,
        extra_body={"chat_template_kwargs": {"script": 0}},
    ) as stream:
        done = [event for event in stream if event.type == "response.function_call_arguments.done"]
        final = stream.get_final_response()
    assert [event.arguments for event in done] == [ARGUMENTS, "{}"]
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]


def test_functions_of_a_namespace_are_sent_apart(client):
    tools = [{"type": "namespace", "name": "sky", "description": "The sky.", "tools": [RESPONSES_TOOLS[0]]}]
    with pytest.raises(openai.BadRequestError) as error:
        respond(client, tools=[tools[0] | {"tools": [{"type": "custom", "name": "x"}]}])
    assert error.value.param == "tools[0].tools[0].type"
    assert respond(client, 1, tools=tools).output_text == "It is fair."


STRICT = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Verona"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "tide"}])
def test_call_that_a_message_must_hold_is_made(scripted, choice):
    tools = [tool | {"input_schema": STRICT} for tool in MESSAGES_TOOLS]
    choice = choice | {"disable_parallel_tool_use": True}
    whole = message_of(scripted, 3, tools=tools, tool_choice=choice).json()
    [call] = [block for block in whole["content"] if block["type"] == "tool_use"]
    assert call["name"] in ("weather", "tide") if choice["type"] == "any" else call["name"] == "tide"
    assert call["input"]["city"] in ("Ulm", "Verona")
    assert whole["stop_reason"] == "tool_use"
    assert streamed_message(scripted, 3, tools=tools, tool_choice=choice)[1]["stop_reason"] == "tool_use"


def test_strict_and_required_functions_of_a_response(client):
    tools = [tool | {"parameters": STRICT, "strict": True} for tool in RESPONSES_TOOLS]
    (call,) = [item for item in respond(client, tools=tools[:1]).output if item.type == "function_call"][:1]
    assert msgspec.json.decode(call.arguments)["city"] in ("Ulm", "Verona")
    for choice in (
        {"type": "function", "name": "tide"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "tide"}]},
    ):
        made = respond(client, 3, tools=tools, tool_choice=choice, parallel_tool_calls=False)
        assert [item.name for item in made.output if item.type == "function_call"] == ["tide"]
        assert made.status == "completed"
    spaced = [{"type": "namespace", "name": "sky", "description": "The sky.", "tools": tools}]
    choice = {"type": "function", "name": "sky.tide"}
    *_, call = respond(client, 3, tools=spaced, tool_choice=choice, parallel_tool_calls=False).output
    assert (call.namespace, call.name) == ("sky", "tide")
