import logging

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.serving.errors import APIError
from llm.serving.parsing import UnknownKeys, parse_request
from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.completions import CompletionRequest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "m", "prompt": "Hi"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def parse(raw, request_type=ChatCompletionRequest):
    return parse_request(msgspec.json.encode(raw), request_type, UnknownKeys())


def refusal(raw, request_type=ChatCompletionRequest):
    with pytest.raises(APIError) as caught:
        parse(raw, request_type)
    assert caught.value.status == 400
    assert caught.value.body.type == "invalid_request_error"
    return caught.value.body


def problem(body, request_type):
    try:
        parse_request(body, request_type, UnknownKeys())
    except APIError as error:
        return error
    return None


def test_chat_request_honours_every_field():
    request = parse(
        CHAT
        | {
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop": ["\n", "END"],
            "max_completion_tokens": 7,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.1,
            "seed": 2**63 - 1,
            "presence_penalty": -2,
            "frequency_penalty": 2,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "min_tokens": 2,
            "typical_p": 0.9,
            "logit_bias": {"5": -100, "6": 2.5},
            "allowed_token_ids": [5, 6, 7],
            "stop_token_ids": [9],
            "skip_special_tokens": False,
            "include_stop_str_in_output": True,
            "logprobs": True,
            "top_logprobs": 3,
        }
    )
    assert (request.typical_p, request.logit_bias, request.stop_token_ids) == (0.9, {5: -100.0, 6: 2.5}, (9,))
    assert request.num_logprobs == 3
    assert request.include_usage
    assert request.stop_strings == ("\n", "END")
    assert (request.max_completion_tokens, request.temperature, request.top_k) == (7, 0.0, 3)


@pytest.mark.parametrize(
    ("sent", "adapted"),
    [
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 7}, {"top_k": 7}),
        ({"top_p": 0}, {"temperature": 0.0}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"seed": -1}, {}),
        ({"seed": -2}, {"seed": 2**63 - 2}),
        ({"seed": -(2**63)}, {"seed": 0}),
        ({"seed": 3}, {"seed": 3}),
    ],
)
def test_values_of_other_servers_are_taken_in_our_form(sent, adapted):
    values = parse(CHAT | sent).adapted
    assert {name: value for name, value in values.items() if value is not None} == adapted


def test_nulls_mean_defaults():
    silent = {name: None for name in ChatCompletionRequest.__struct_fields__ if name not in CHAT}
    assert parse(CHAT | silent) == parse(CHAT)


def test_message_content_may_be_text_parts():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = parse({"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert request.messages[0].text == "one\ntwo"


def test_single_stop_string_is_taken_as_one():
    assert parse(CHAT | {"stop": "END"}).stop_strings == ("END",)


@pytest.mark.parametrize(
    ("raw", "param", "message"),
    [
        ({"messages": CHAT["messages"]}, "model", "`model` is required"),
        ({"model": "m"}, "messages", "`messages` is required"),
        ({"model": "m", "messages": [{"role": "user"}]}, "messages[0].content", "`messages[0].content` is required"),
        (CHAT | {"temperature": 2.5}, "temperature", "`temperature` is invalid: expected `float` <= 2.0, got 2.5"),
        (CHAT | {"temperature": True}, "temperature", "`temperature` is invalid: expected `float | null`, got `bool`"),
        (CHAT | {"max_tokens": 0}, "max_tokens", "`max_tokens` is invalid: expected `int` >= 1, got 0"),
        (CHAT | {"stop": ["x"] * 33}, "stop", "expected `array` of length <= 32"),
        (CHAT | {"top_k": -2}, "top_k", "expected `int` >= -1, got -2"),
        (CHAT | {"top_p": -0.1}, "top_p", "expected `float` >= 0.0, got -0.1"),
        (CHAT | {"seed": -(2**63) - 1}, "seed", "got -9223372036854775809"),
        (CHAT | {"stop": ["a", ""]}, "stop[1]", 'expected `str` of length >= 1, got ""'),
        (CHAT | {"seed": 2**63}, "seed", "got 9223372036854775808"),
        (CHAT | {"seed": 2**70}, "seed", f"got {2**70}"),
        (CHAT | {"messages": []}, "messages", "expected `array` of length >= 1, got []"),
        (CHAT | {"stream_options": {}}, "stream_options", "only allowed when `stream` is true"),
        (CHAT | {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "contradict"),
        (CHAT | {"typical_p": 0}, "typical_p", "`typical_p` is invalid: expected `float` > 0.0, got 0"),
        (
            CHAT | {"logit_bias": {"5": 101}},
            "logit_bias",
            '`logit_bias` is invalid: expected `float` <= 100.0, got {"5": 101}',
        ),
        (CHAT | {"logit_bias": {"five": 1}}, "logit_bias", "`logit_bias` is invalid: expected `int`, got `str`"),
        (CHAT | {"allowed_token_ids": []}, "allowed_token_ids", "expected `array` of length >= 1, got []"),
        (CHAT | {"stop_token_ids": [-1]}, "stop_token_ids[0]", "expected `int` >= 0, got -1"),
        (CHAT | {"logprobs": 2}, "logprobs", "expected `bool | null`, got `int`"),
        (CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "expected `int` <= 20, got 21"),
        (CHAT | {"top_logprobs": 2}, "top_logprobs", "only allowed when `logprobs` is true"),
        (CHAT | {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "not allowed when `stream` is true"),
    ],
)
def test_wrong_values_say_what_and_what_is_allowed(raw, param, message):
    body = refusal(raw)
    assert body.param == param
    assert message in body.message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"role": "robot", "content": "x"},
            '`messages[0].role` must be one of system, developer, user, assistant, tool, got "robot"',
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            '`messages[0].content[0].type` must be one of text, got "image_url"',
        ),
    ],
)
def test_a_value_outside_a_list_says_what_is_allowed(message, expected):
    assert refusal({"model": "m", "messages": [message]}).message == expected


@pytest.mark.parametrize("role", ["robot", "function"])
def test_unknown_role_is_named(role):
    body = refusal({"model": "m", "messages": [{"role": role, "content": "x"}]})
    assert body.param == "messages[0].role"
    assert role in body.message


@pytest.mark.parametrize("kind", ["image_url", "input_audio"])
def test_parts_other_than_text_are_refused(kind):
    body = refusal({"model": "m", "messages": [{"role": "user", "content": [{"type": kind, "text": "x"}]}]})
    assert body.param == "messages[0].content[0].type"
    assert kind in body.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{}]),
        ("modalities", ["text", "audio"]),
        ("store", True),
    ],
)
def test_known_parameter_that_is_not_honoured_is_refused(name, value):
    body = refusal(CHAT | {name: value})
    assert (body.param, body.code) == (name, "unsupported_parameter")
    assert f"`{name}` is not supported with this value" in body.message


@pytest.mark.parametrize(
    ("name", "value"),
    [("suffix", "x")],
)
def test_known_completion_parameter_that_is_not_honoured_is_refused(name, value):
    body = refusal(TEXT | {name: value}, CompletionRequest)
    assert (body.param, body.code) == (name, "unsupported_parameter")


def test_empty_tool_calls_of_an_earlier_turn_are_no_calls():
    echoed = {"role": "assistant", "content": "x", "tool_calls": None, "refusal": None, "annotations": []}
    assert parse({"model": "m", "messages": [echoed]}).messages[0].text == "x"
    body = refusal({"model": "m", "messages": [echoed | {"tool_calls": [{"id": "1"}]}]})
    assert (body.param, body.code) == ("messages[0].tool_calls[0].function", "missing_required_parameter")


@pytest.mark.parametrize("prompt", ["text", ["one", "two"], [1, 2, 3], [[1], [2, 3]]])
def test_prompt_takes_its_four_forms(prompt):
    assert parse({"model": "m", "prompt": prompt}, CompletionRequest).prompt == prompt


@pytest.mark.parametrize("prompt", [None, [], [1, "a"], [["a"]], [-1], [2**32], [1.5], {"text": "x"}, ["x"] * 257])
def test_other_prompts_are_refused(prompt):
    assert refusal({"model": "m", "prompt": prompt}, CompletionRequest).param.startswith("prompt")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model": "m"} trailing', "not valid JSON"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b'{"model": "\\ud800xxxxx"}', "invalid Unicode"),
        (b'{"model": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"temperature": 1e999}', "not valid JSON"),
        (b"[]", "must be a JSON object, got []"),
        (b"null", "must be a JSON object, got null"),
    ],
)
def test_malformed_bodies_are_refused(body, message):
    with pytest.raises(APIError) as caught:
        parse_request(body, ChatCompletionRequest, UnknownKeys())
    assert caught.value.status == 400
    assert message in caught.value.body.message


def test_unknown_keys_are_logged_once_and_ignored(caplog):
    unknown_keys = UnknownKeys(limit=2)
    body = msgspec.json.encode(CHAT | {"foo": 1, "bar\n": 2, "third": 3})
    with caplog.at_level(logging.WARNING, logger="llm.serving.parsing"):
        for _ in range(3):
            assert parse_request(body, ChatCompletionRequest, unknown_keys) == parse(CHAT)
    assert [record.getMessage() for record in caplog.records] == [
        "unknown request key 'foo' is ignored",
        "unknown request key 'bar\\n' is ignored",
    ]


@given(st.binary() | json_values.map(msgspec.json.encode), st.sampled_from([ChatCompletionRequest, CompletionRequest]))
def test_any_bytes_are_a_request_or_a_400(body, request_type):
    error = problem(body, request_type)
    assert error is None or error.status == 400


@given(st.dictionaries(st.sampled_from([*ChatCompletionRequest.__struct_fields__, "n", "tools", "x"]), json_values))
def test_any_value_of_a_field_is_a_request_or_a_400_that_names_a_field(changes):
    error = problem(msgspec.json.encode(CHAT | changes), ChatCompletionRequest)
    assert error is None or (error.status == 400 and error.body.param)


@given(json_values)
def test_any_message_is_a_request_or_a_400(message):
    error = problem(msgspec.json.encode({"model": "m", "messages": [message]}), ChatCompletionRequest)
    assert error is None or (error.status == 400 and error.body.param.startswith("messages"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model": "m\xff"}', "The request body is not UTF-8: byte 12 can't be decoded"),
        (b'{"model": "\xe2\x82"}', "The request body is not UTF-8: byte 11 can't be decoded"),
        (b'{"model": "\\ud83d"}', "The request body contains invalid Unicode: a lone surrogate at byte 11"),
        (b'{"model": "\\ude00 x"}', "The request body contains invalid Unicode: a lone surrogate at byte 11"),
        (
            b'{"a": "\\ud83d\\ude00 \\uD83D x"}',
            "The request body contains invalid Unicode: a lone surrogate at byte 20",
        ),
        (
            b'{"a": "\\\\ud83d \\ud83d\\n"}',
            "The request body contains invalid Unicode: a lone surrogate at byte 15",
        ),
    ],
)
def test_invalid_unicode_is_named_with_its_place_in_the_body(body, message):
    with pytest.raises(APIError) as caught:
        parse_request(body, ChatCompletionRequest, UnknownKeys())
    assert caught.value.body.message == message
