"""Grammars of calls: what an untrained model draws under one is a call of the request, in every format."""

import json

import pytest
import torch

from llm import LLM, SamplingParams
from llm._rust import ANSWER_FORMATS
from llm.checkpoint import atomic_directory, write_model
from llm.errors import InvalidArgumentError
from llm.inference import AnswerSetup, Part, PartsParser, parameter_types
from llm.inference.answer_format import AnswerFormat
from llm.inference.parts import joined_text, tool_calls
from llm.inference.tool_grammar import AnswerShape, CalledFunction, answer_grammar, arguments_schema
from llm.models import DecoderModel
from llm.settings.model import ModelConfig
from llm.settings.structured import StructuredOutputs
from llm.tokenization import BPETokenizer

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Ulm", "Verona"]},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2},
        "unit": {"$ref": "#/$defs/unit"},
        "wind": {"type": "boolean"},
    },
    "$defs": {"unit": {"enum": ["°C", None]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
NOTE = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}},
    "additionalProperties": False,
}
FUNCTIONS = [
    CalledFunction(name="weather", parameters=WEATHER),
    CalledFunction(name="note", parameters=NOTE),
    CalledFunction(name="now", parameters=arguments_schema(None)),
]
FORMS = [
    *(AnswerFormat(calls=name) for name, _ in ANSWER_FORMATS),
    AnswerFormat(calls="mistral", is_newer=True),
    AnswerFormat(calls="deepseek", is_newer=True),
]
SPECIAL = [
    *("<end>", "</think>", "[TOOL_CALLS]", "[ARGS]"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
]


@pytest.fixture(scope="module", params=[SPECIAL[:1], SPECIAL], ids=["text markers", "special markers"])
def untrained(request, tmp_path_factory):
    """A model that draws almost evenly, whose markers are texts or special tokens."""
    words = 'weather note now {"name": "arguments": "parameters" tool_call function= parameter= city days unit'
    tokenizer = BPETokenizer.train_from_iterator(
        [words] * 4, vocab_size=400, special_tokens=request.param, progress=False
    )
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    with atomic_directory(directory) as unfinished:
        write_model(unfinished, DecoderModel(config), tokenizer)
    return LLM(directory)


def answers(model, form, shape):
    """The calls and the text of drawn answers, without the last call of an answer that did not end by itself."""
    grammar = answer_grammar(form, model.tokenizer.special_tokens, shape)
    form_of_answer = StructuredOutputs(grammar=grammar)
    params = SamplingParams(structured_outputs=form_of_answer, max_tokens=700, n=8, seed=1, skip_special_tokens=False)
    tools = parameter_types([{"name": each.name, "parameters": each.parameters} for each in shape.functions])
    for output in model.generate("go", params).choices:
        parser = PartsParser(AnswerSetup(format=form.calls, tools=tools))
        parts = parser.push(output.text.removesuffix("<end>")) + parser.finish()
        calls = tool_calls(parts)
        has_ended = output.finish_reason == "stop"
        assert has_ended or shape.is_parallel, output.text
        yield calls if has_ended else calls[:-1], joined_text(parts, "text") if has_ended else ""


def assert_follows(call):
    arguments = json.loads(call.arguments)
    if call.name == "weather":
        assert {"city", "unit"} <= set(arguments) <= {"city", "days", "unit", "wind"}
        assert arguments["city"] in ("Ulm", "Verona")
        assert arguments["unit"] in ("°C", None)
        assert all(type(day) is int and 0 <= day <= 9 for day in arguments.get("days", []))
        assert isinstance(arguments.get("wind", True), bool)
    elif call.name == "note":
        assert set(arguments) <= {"a", "b"}
        assert isinstance(arguments.get("a", True), bool)
        assert arguments.get("b") is None
    else:
        assert (call.name, arguments) == ("now", {})


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.calls}{'_new' * form.is_newer}")
def test_required_calls_are_calls_in_every_format(untrained, form):
    shape = AnswerShape(functions=FUNCTIONS, is_required=True, is_parallel=False)
    for [call], text in answers(untrained, form, shape):
        assert text == ""
        assert_follows(call)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.calls}{'_new' * form.is_newer}")
def test_several_calls_follow_their_schemas(untrained, form):
    found = [calls for calls, _ in answers(untrained, form, AnswerShape(functions=FUNCTIONS, is_required=True))]
    for calls in found:
        for call in calls:
            assert_follows(call)
    most = 1 if form.calls in ("llama3_json", "json") else 2
    assert max(map(len, found)) >= most


def accepts(model, text, shape, **form):
    grammar = answer_grammar(AnswerFormat(**form), {}, shape)
    return model.engine.core.compile_grammar("grammar", grammar, is_compact=False).accepts(text.encode())


CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def test_arguments_that_a_schema_leaves_open_may_be_added(untrained):
    unit = {"type": "object", "properties": {"unit": {"type": "null"}}, "required": ["unit"]}
    text = CALL.replace("{}", '{"unit": null, "more": 1}')
    for is_closed in (False, True):
        parameters = unit | ({"additionalProperties": False} if is_closed else {})
        shape = AnswerShape(functions=[CalledFunction(name="now", parameters=parameters)], is_required=True)
        assert accepts(untrained, text, shape, calls="hermes") is not is_closed
        assert not accepts(untrained, text.replace('"unit"', '"Unit"'), shape, calls="hermes")


def test_strict_functions_leave_text_free(untrained):
    shape = AnswerShape(functions=FUNCTIONS[2:])
    for text, is_accepted in [
        ("", True), ("It is < 5.", True), (CALL, True), (f"Let me see.\n{CALL}", True), (f"{CALL}\n{CALL}", True),
        (CALL.replace("{}", '{"a": 1}'), False), ("<tool_call>no", False), (f"{CALL} and text", False),
    ]:  # fmt: skip
        assert accepts(untrained, text, shape, calls="hermes") == is_accepted, text
    call = '{"name": "now", "arguments": {}}'
    for text, is_accepted in [("Hi {}", True), (call, True), ("", True), (call.replace("now", "no"), False)]:
        assert accepts(untrained, text, shape, calls="json") == is_accepted, text


def test_reasoning_comes_before_what_is_required(untrained):
    shape = AnswerShape(functions=FUNCTIONS[2:], is_required=True)
    form = {"calls": "hermes", "reasoning": ("<think>", "</think>")}
    assert accepts(untrained, CALL, shape, **form)
    assert accepts(untrained, f"<think>I <tool_call> not</think>\n\n{CALL}", shape, **form)
    assert not accepts(untrained, f"<think>on and on {CALL}", shape, **form)
    opened = AnswerShape(functions=FUNCTIONS[2:], is_required=True, starts_in_reasoning=True)
    assert accepts(untrained, f"Hm</think>\n\n{CALL}", opened, **form)
    assert not accepts(untrained, CALL, opened, **form)
    answer = AnswerShape(text={"type": "boolean"}, starts_in_reasoning=True)
    assert accepts(untrained, "Hm</think>\n\ntrue", answer, reasoning=("<think>", "</think>"))
    assert not accepts(untrained, "true", answer, reasoning=("<think>", "</think>"))


def test_json_instead_of_text_leaves_room_for_calls(untrained):
    shape = AnswerShape(functions=FUNCTIONS[2:], text={"type": "boolean"})
    assert accepts(untrained, CALL, shape, calls="hermes")
    assert accepts(untrained, "true", shape, calls="hermes")
    assert not accepts(untrained, "maybe", shape, calls="hermes")


def test_what_a_format_cant_hold_is_named():
    def grammar(calls, properties):
        function = CalledFunction(name="f", parameters={"type": "object", "properties": properties})
        return answer_grammar(AnswerFormat(calls=calls), {}, AnswerShape(functions=[function]))

    with pytest.raises(InvalidArgumentError, match="`pattern` of the argument x can't be enforced"):
        grammar("qwen_coder", {"x": {"type": "string", "pattern": "a"}})
    with pytest.raises(InvalidArgumentError, match=r"the arguments of f must have names of letters.*got 'a b'"):
        grammar("llama4_pythonic", {"a b": {}})


def test_plain_texts_are_strings_in_the_xml_format(untrained):
    parameters = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
    shape = AnswerShape(functions=[CalledFunction(name="f", parameters=parameters)], is_required=True)
    text = '<tool_call>\n<function=f>\n<parameter=x>\n5 "<\n</parameter>\n</function>\n</tool_call>'
    assert accepts(untrained, text, shape, calls="qwen_coder")
    parser = PartsParser(AnswerSetup(format="qwen_coder", tools={"f": {"x": "string"}}))
    assert (parser.push(text) + parser.finish())[1] == Part("arguments", 0, '{"x": "5 \\"<"}')
