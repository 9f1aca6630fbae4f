"""Parts of answers: the binding of the parser, and the types of parameters that it reads from schemas."""

import pytest

from llm._rust import ANSWER_FORMATS
from llm.errors import InvalidArgumentError
from llm.inference import AnswerSetup, Part, PartsParser, parameter_types

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'


def parts_of(pieces, **options):
    parser = PartsParser(AnswerSetup(format="hermes", reasoning=("<think>", "</think>"), **options))
    return [part for piece in pieces for part in parser.push(piece)] + parser.finish()


def test_parts_arrive_as_soon_as_they_are_certain():
    parser = PartsParser(AnswerSetup(format="hermes", reasoning=("<think>", "</think>")))
    assert parser.push("<think>\nHm") == [Part("reasoning", None, "Hm")]
    assert parser.push(" so\n</th") == [Part("reasoning", None, " so")]
    assert parser.push("ink>\n\nSure. <") == [Part("text", None, "Sure.")]
    assert parser.push('tool_call>{"name": "f", ') == [Part("call", 0, "f")]
    assert parser.push('"arguments": {"x": 1') == [Part("arguments", 0, '{"x": 1')]
    assert parser.push("}}") == [Part("arguments", 0, "}")]
    assert parser.finish() == []


def test_each_letter_alone_gives_the_same_text():
    whole = parts_of([f"<think>Hm</think>Sure.{CALL}{CALL}"])
    letters = parts_of(f"<think>Hm</think>Sure.{CALL}{CALL}")
    joined = {}
    for part in letters:
        joined[part.kind, part.call] = joined.get((part.kind, part.call), "") + part.text
    assert joined == {(part.kind, part.call): part.text for part in whole}
    assert joined["arguments", 1] == '{"x": "é"}'


def test_an_answer_may_start_in_reasoning():
    assert parts_of(["Hm</think>Yes"], starts_in_reasoning=True) == [
        Part("reasoning", None, "Hm"),
        Part("text", None, "Yes"),
    ]


def test_formats_have_names_and_markers():
    formats = dict(ANSWER_FORMATS)
    assert list(formats) == [
        "hermes", "qwen_coder", "llama3_json", "llama4_pythonic", "mistral", "deepseek", "json",
    ]  # fmt: skip
    assert formats["hermes"] == ["<tool_call>", "</tool_call>"]
    with pytest.raises(InvalidArgumentError, match=r"`format` must be one of hermes, .*, got \"other\""):
        PartsParser(AnswerSetup(format="other"))


def test_lone_surrogates_are_refused():
    with pytest.raises(InvalidArgumentError, match="lone surrogates"):
        PartsParser(AnswerSetup(format="json")).push("\ud800")


def test_parameter_types_come_from_the_schema():
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {"type": ["string", "null"]},
            "c": {"enum": ["x", "y"]},
            "d": {"type": "integer"},
            "e": True,
        },
    }
    functions = [{"name": "f", "parameters": schema}, {"name": "g"}, {"name": "h", "parameters": {"properties": 1}}]
    assert parameter_types(functions) == {"f": {"a": "string", "c": "string", "d": "integer"}, "g": {}, "h": {}}
