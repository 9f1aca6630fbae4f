"""Tools and reasoning through the real server: a model that says given texts, and OpenAI's client."""

import json

import httpx
import openai
import pytest

from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
from tests.integration.server_client import metric
from tests.scripted import write_scripted

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Verona", "days": [1, 2]}}\n</tool_call>'
TWO_CALLS = f'Let me see.\n{CALL}\n<tool_call>\n{{"name": "tide", "arguments": {{}}}}\n</tool_call>'
SCRIPTS = [
    CALL,
    TWO_CALLS,
    "<think>\nIs it far?\n</think>\n\nIt is fair.",
    "Is it far?\n</think>\n\nIt is fair.",
    f"<think>why</think>{CALL}",
    "<tool_call>not a call</tool_call>",
    "<think>on and on and on",
]
ARGUMENTS = '{"city": "Verona", "days": [1, 2]}'
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("weather", "tide")
]


@pytest.fixture(scope="module")
def scripted_server(tmp_path_factory):
    path = write_scripted(tmp_path_factory.mktemp("checkpoints") / "tiny", SCRIPTS, special_tokens=["<think>"])
    with ServerHandle(path, ServerConfig(port=0, engine=EngineConfig(max_running_requests=16))) as handle:
        yield handle


@pytest.fixture(scope="module")
def scripted(scripted_server):
    return openai.OpenAI(base_url=scripted_server.base_url, api_key="any", max_retries=0, timeout=60)


def ask(client, script, opens=False, **options):
    variables = {"script": script, "opens": opens}
    request = {"model": "tiny", "messages": [{"role": "user", "content": "Go"}], "tools": TOOLS}
    return client.chat.completions.create(
        **request | options, extra_body={"chat_template_kwargs": variables} | options.pop("extra_body", {})
    )


def streamed(client, script, **options):
    """The message that the deltas of a stream add up to, its finish reason and its number of chunks."""
    message = {"content": "", "reasoning": "", "reasoning_content": "", "tool_calls": []}
    finish_reason, num_chunks = None, 0
    for chunk in ask(client, script, stream=True, **options):
        num_chunks += 1
        (choice,) = chunk.choices
        delta = choice.delta.model_dump(exclude_unset=True)
        for name in ("content", "reasoning", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls") or []:
            if "id" in call:
                assert call["index"] == len(message["tool_calls"])
                assert (call["type"], call["function"]["arguments"]) == ("function", "")
                message["tool_calls"].append([call["function"]["name"], ""])
            else:
                assert set(call["function"]) == {"arguments"}
                message["tool_calls"][call["index"]][1] += call["function"]["arguments"]
        assert finish_reason is None
        finish_reason = choice.finish_reason
    return message, finish_reason, num_chunks


def test_a_call_is_answered_whole_and_as_a_stream(scripted):
    (choice,) = ask(scripted, 0).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == ("function", "weather", ARGUMENTS)
    assert call.id.startswith("call_")
    message, finish_reason, num_chunks = streamed(scripted, 0)
    assert (message["tool_calls"], message["content"]) == ([["weather", ARGUMENTS]], "")
    assert finish_reason == "tool_calls"
    assert num_chunks > 5, "arguments must stream as they come"


def test_text_before_several_calls_stays_content(scripted):
    (choice,) = ask(scripted, 1).choices
    assert choice.message.content == "Let me see."
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "tide"]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    message, finish_reason, _ = streamed(scripted, 1)
    assert message["content"] == "Let me see."
    assert message["tool_calls"] == [["weather", ARGUMENTS], ["tide", "{}"]]
    assert finish_reason == "tool_calls"


def test_without_parallel_calls_only_the_first_is_given(scripted):
    (choice,) = ask(scripted, 1, parallel_tool_calls=False).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"]
    assert streamed(scripted, 1, parallel_tool_calls=False)[0]["tool_calls"] == [["weather", ARGUMENTS]]


@pytest.mark.parametrize("options", [{"tools": openai.NOT_GIVEN}, {"tool_choice": "none"}])
def test_without_tools_the_text_stays_as_it_is(scripted, options):
    (choice,) = ask(scripted, 0, **options).choices
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", CALL, None)
    assert streamed(scripted, 0, **options)[:2] == (
        {"content": CALL, "reasoning": "", "reasoning_content": "", "tool_calls": []},
        "stop",
    )


@pytest.mark.parametrize(("script", "opens"), [(2, False), (3, True)])
def test_reasoning_is_split_off_under_both_names(scripted, script, opens):
    answer = ask(scripted, script, opens=opens, tools=openai.NOT_GIVEN)
    message = answer.choices[0].message.model_dump()
    assert (message["reasoning"], message["reasoning_content"]) == ("Is it far?", "Is it far?")
    assert message["content"] == "It is fair."
    assert answer.choices[0].finish_reason == "stop"
    whole, finish_reason, _ = streamed(scripted, script, opens=opens, tools=openai.NOT_GIVEN)
    assert (whole["reasoning"], whole["reasoning_content"], whole["content"]) == (
        "Is it far?",
        "Is it far?",
        "It is fair.",
    )
    assert finish_reason == "stop"


def test_reasoning_comes_before_a_call_and_counts_as_such(scripted):
    answer = ask(scripted, 4)
    (choice,) = answer.choices
    assert (choice.message.model_dump()["reasoning"], choice.message.content) == ("why", None)
    assert choice.message.tool_calls[0].function.arguments == ARGUMENTS
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
    assert ask(scripted, 0).usage.completion_tokens_details.reasoning_tokens == 0


def test_reasoning_that_is_cut_ends_with_length(scripted):
    (choice,) = ask(scripted, 6, max_tokens=4).choices
    assert (choice.finish_reason, choice.message.content) == ("length", None)
    assert "on and on and on".startswith(choice.message.model_dump()["reasoning"])


def test_a_call_that_is_cut_ends_with_length(scripted):
    (choice,) = ask(scripted, 0, max_tokens=20).choices
    assert choice.finish_reason == "length"
    assert ARGUMENTS.startswith(choice.message.tool_calls[0].function.arguments)


def test_what_is_no_call_is_content(scripted):
    (choice,) = ask(scripted, 5).choices
    assert (choice.finish_reason, choice.message.content) == ("stop", SCRIPTS[5])
    assert streamed(scripted, 5)[0]["content"] == SCRIPTS[5]


def test_an_answer_of_a_given_form_is_content_even_where_the_prompt_opens_reasoning(scripted):
    form = {"structured_outputs": {"choice": ["yes"]}, "chat_template_kwargs": {"script": 3, "opens": True}}
    request = {"model": "tiny", "messages": [{"role": "user", "content": "Go"}], "extra_body": form}
    assert scripted.chat.completions.create(**request).choices[0].message.content == "yes"


STRICT = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Verona"]}, "day": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "day"],
    "additionalProperties": False,
}


def tool(name, **fields):
    return {"type": "function", "function": {"name": name, "parameters": STRICT} | fields}


def assert_strict(call):
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "day"}
    assert arguments["city"] in ("Ulm", "Verona")
    assert arguments["day"] in range(10)


@pytest.mark.parametrize("script", [2, 5])
def test_a_required_call_is_made_whatever_the_model_would_say(scripted, script):
    tools = [tool("weather"), tool("tide")]
    (choice,) = ask(scripted, script, tools=tools, tool_choice="required", parallel_tool_calls=False).choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name in ("weather", "tide")
    assert_strict(call)
    named = {"type": "function", "function": {"name": "tide"}}
    (choice,) = ask(scripted, script, tools=tools, tool_choice=named).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["tide"]
    message, finish_reason, _ = streamed(scripted, script, tools=tools, tool_choice=named)
    assert (message["tool_calls"][0][0], finish_reason) == ("tide", "tool_calls")


def test_a_strict_function_gets_no_other_arguments(scripted):
    (choice,) = ask(scripted, 0, tools=[tool("weather", strict=True)]).choices
    assert_strict(choice.message.tool_calls[0])
    (choice,) = ask(scripted, 2, tools=[tool("weather", strict=True)]).choices
    assert (choice.message.content, choice.message.model_dump()["reasoning"]) == ("It is fair.", "Is it far?")


def test_a_form_of_the_answer_leaves_room_for_reasoning_and_calls(scripted):
    form = {"type": "json_schema", "json_schema": {"name": "fair", "schema": {"type": "boolean"}}}
    (choice,) = ask(scripted, 2, tools=openai.NOT_GIVEN, response_format=form).choices
    assert choice.message.content in ("true", "false")
    assert choice.message.model_dump()["reasoning"] == "Is it far?"
    (choice,) = ask(scripted, 0, response_format=form).choices
    assert choice.message.tool_calls[0].function.name == "weather"


def test_a_form_of_the_answer_is_compiled_once_together_with_its_reasoning(scripted_server, scripted):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["only", "here"]}}}
    before = metric(scripted_server, "llm_grammars_compiled")
    (choice,) = ask(scripted, 2, tools=openai.NOT_GIVEN, response_format=form).choices
    assert json.loads(choice.message.content) in ("only", "here")
    assert metric(scripted_server, "llm_grammars_compiled") == before + 1


@pytest.mark.parametrize(
    ("schema", "parameters", "param", "where"),
    [
        ({"not": {}}, {"type": "object"}, "response_format.json_schema.schema", "`not` at #"),
        ({"type": "boolean"}, {"type": "object", "not": {}}, "tools", "`not` at #"),
    ],
)
def test_what_is_wrong_is_named_whether_in_the_form_or_in_a_tool(scripted, schema, parameters, param, where):
    function = {"name": "look", "strict": True, "parameters": parameters}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(scripted, 2, tools=[{"type": "function", "function": function}], response_format=form)
    assert (caught.value.param, caught.value.code) == (param, "invalid_grammar")
    assert where in caught.value.message


def test_choices_have_calls_of_their_own(scripted):
    answer = ask(scripted, 0, n=2)
    assert [choice.message.tool_calls[0].function.arguments for choice in answer.choices] == [ARGUMENTS] * 2
    assert len({choice.message.tool_calls[0].id for choice in answer.choices}) == 2


def test_log_probabilities_of_a_call_are_streamed_with_it(scripted):
    whole = ask(scripted, 0, logprobs=True).choices[0].logprobs.content
    chunks = list(ask(scripted, 0, logprobs=True, stream=True))
    tokens = [
        entry.token for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content
    ]
    assert tokens == [entry.token for entry in whole]
    assert "".join(tokens).startswith(CALL)


def shown(client, messages, **options):
    """What the template was given, which it raises as an error."""
    first = {"role": "user", "content": "show"}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, 0, messages=[first, *messages], **options)
    text = caught.value.message
    messages, tools = json.loads(text[text.index("[[") : text.rindex("]") + 1])
    return messages[1:], tools


def test_the_template_gets_tools_calls_and_results(scripted):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    conversation = [
        {"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "fair"}]},
    ]
    messages, tools = shown(scripted, conversation, tools=TOOLS[:1])
    assert tools == TOOLS[:1]
    assistant, result = messages
    assert assistant["tool_calls"] == [call | {"function": {"name": "weather", "arguments": {"city": "Ulm"}}}]
    assert (assistant["content"], assistant["reasoning_content"]) == ("", "Hm")
    assert result == {"role": "tool", "content": "fair", "name": "weather", "tool_call_id": "call_1"}


def test_wrong_tools_are_refused_by_name(scripted_server):
    message = {"role": "user", "content": "Go"}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[1]"}}
    sent = {"role": "assistant", "content": None, "tool_calls": [call]}
    cases = [
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "must be one of function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "matching regex"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", "must be one of none, auto, required"),
        ({"tool_choice": "required"}, "tool_choice", "only allowed with `tools`"),
        (
            {"tools": [tool("f", strict=True, parameters={"properties": {"x": {"contains": 1}}})]},
            "tools",
            "contains",
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "must name one of `tools` (weather, tide), got g",
        ),
        (
            {"tools": TOOLS, "tool_choice": "required", "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "contradict each other",
        ),
        ({"messages": [message, sent]}, "messages[1].tool_calls[0].function.arguments", 'a JSON object, got "[1]"'),
        ({"messages": [{"role": "tool", "content": None}]}, "messages[0].content", "is required"),
        (
            {"messages": [{"role": "function", "content": ""}]},
            "messages[0].role",
            'send the result with the role "tool"',
        ),
    ]
    for body, param, text in cases:
        response = httpx.post(
            f"{scripted_server.base_url}/chat/completions",
            json={"model": "tiny", "messages": [message]} | body,
            trust_env=False,
        )
        assert response.status_code == 400, (body, response.text)
        error = response.json()["error"]
        assert (error["param"], text in error["message"]) == (param, True), error


def test_other_apis_give_calls_and_reasoning_in_their_own_form(scripted_server, scripted):
    variables = {"chat_template_kwargs": {"script": 4}}
    parameters = {"type": "object", "properties": {}}
    answer = scripted.responses.create(
        model="tiny",
        input="Go",
        tools=[{"type": "function", "name": "weather", "parameters": parameters, "strict": False}],
        extra_body=variables,
    )
    reasoning, call = answer.output
    assert (reasoning.type, call.type, call.name, call.arguments) == (
        "reasoning",
        "function_call",
        "weather",
        ARGUMENTS,
    )
    response = httpx.post(
        f"{scripted_server.url}/v1/messages",
        json={
            "model": "tiny",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "Go"}],
            "tools": [{"name": "weather", "input_schema": parameters}],
        }
        | variables,
        trust_env=False,
    ).json()
    thinking, use = response["content"]
    assert (thinking["type"], thinking["thinking"], response["stop_reason"]) == ("thinking", "why", "tool_use")
    assert (use["type"], use["name"], use["input"]) == ("tool_use", "weather", json.loads(ARGUMENTS))
