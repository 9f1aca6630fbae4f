"""Structured outputs as clients ask for them: OpenAI's client, a real port, a tiny seeded model."""

import json

import openai
import pytest

from tests.integration.server_client import chat, complete

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}


def json_format(schema, **fields):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


@pytest.mark.parametrize("fields", [{}, {"strict": True}, {"strict": False}])
def test_a_json_schema_binds_whether_strict_or_not(client, fields):
    answer = chat(client, response_format=json_format(SCHEMA, **fields), max_tokens=60)
    assert answer.choices[0].finish_reason == "stop"
    assert set(json.loads(answer.choices[0].message.content)) == {"ok", "n"}


def test_a_stream_joins_to_the_same_answer(client):
    request = {"response_format": json_format(SCHEMA), "max_tokens": 60, "seed": 3}
    whole = chat(client, **request).choices[0].message.content
    chunks = list(chat(client, stream=True, **request))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_text_asks_for_nothing(client):
    plain, text = (chat(client, seed=2, **fields) for fields in ({}, {"response_format": {"type": "text"}}))
    assert plain.choices[0].message.content == text.choices[0].message.content


@pytest.mark.parametrize(
    ("form", "holds"),
    [
        ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"regex": "[ab]{3}"}, lambda text: len(text) == 3 and set(text) <= {"a", "b"}),
        ({"grammar": 'start: "n=" /[0-9]/'}, lambda text: text[:2] == "n=" and text[2:].isdigit()),
        ({"json": SCHEMA, "disable_any_whitespace": True}, lambda text: " " not in text and json.loads(text)),
    ],
)
def test_structured_outputs_take_vllms_forms(client, form, holds):
    answer = complete(client, max_tokens=60, extra_body={"structured_outputs": form})
    assert holds(answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


def test_several_answers_each_have_the_form(client):
    answer = chat(client, response_format=json_format(SCHEMA), max_tokens=60, n=3)
    assert all(json.loads(choice.message.content).keys() == {"ok", "n"} for choice in answer.choices)


def test_a_cut_answer_says_length(client):
    answer = chat(client, response_format={"type": "json_object"}, max_tokens=1)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content[0]) == ("length", "{")


@pytest.mark.parametrize(
    ("request_fields", "param", "words"),
    [
        (
            {"response_format": json_format({"properties": {"a": {"not": {}}}})},
            "response_format.json_schema.schema",
            "`response_format.json_schema.schema` has the keyword `not` at #/properties/a, which is not supported",
        ),
        (
            {"response_format": json_format({"type": "text"})},
            "response_format.json_schema.schema",
            "has an invalid `type` at #: it must be one of null,",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is required"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "must be one of text, json_object, json_schema"),
        ({"response_format": "json"}, "response_format", ""),
        (
            {"extra_body": {"structured_outputs": {"regex": "("}}},
            "structured_outputs.regex",
            "`structured_outputs.regex` is invalid: ",
        ),
        (
            {"extra_body": {"structured_outputs": {"grammar": "start: x"}}},
            "structured_outputs.grammar",
            'unknown name: "x"',
        ),
        ({"extra_body": {"structured_outputs": {}}}, "structured_outputs", "give exactly one of `json`"),
        ({"extra_body": {"structured_outputs": {"yaml": ""}}}, "structured_outputs", "unknown field `yaml`"),
        (
            {"response_format": {"type": "json_object"}, "extra_body": {"structured_outputs": {"regex": "a"}}},
            "structured_outputs",
            "both ask for a form",
        ),
        ({"extra_body": {"guided_json": SCHEMA}}, "guided_json", "`structured_outputs` with `json`"),
    ],
)
def test_a_form_that_cannot_be_kept_is_a_400_that_names_it(client, request_fields, param, words):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **request_fields)
    assert caught.value.param == param
    assert words in caught.value.body["message"]


def ambiguous(num_rules):
    """A grammar of texts of `a` that can be read in so many ways that no parser keeps track for long."""
    rules = [f"s{index}" for index in range(num_rules)]
    return "\n".join([f"start: {' | '.join(rules)}", *(f'{rule}: "a" | {rule} {rule}' for rule in rules)])


def too_complex(stream):
    return {
        "max_tokens": 60,
        "stream": stream,
        "extra_body": {"structured_outputs": {"grammar": ambiguous(60)}, "ignore_eos": True},
    }


def test_a_grammar_that_becomes_too_complex_ends_its_own_answer_only(client):
    words = "the grammar can't be matched: too many of its rules fit at once"
    other = {"max_tokens": 100, "seed": 5}
    alone = complete(client, **other).choices[0].text
    running = complete(client, stream=True, **other)
    first = next(running).choices[0].text
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        complete(client, **too_complex(stream=False))
    assert (refused.value.code, refused.value.param) == ("grammar_failed", None)
    stream = complete(client, **too_complex(stream=True))
    with pytest.raises(openai.APIError, match=words) as ended:
        list(stream)
    assert ended.value.body["code"] == "grammar_failed"
    assert first + "".join(chunk.choices[0].text for chunk in running) == alone
