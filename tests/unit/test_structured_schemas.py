"""Answers to generated schemas, drawn at temperature 1 from an untrained model, by a validator that is not ours."""

import json
import shutil

import jsonschema_rs
import pytest

from llm import LLM, SamplingParams, StructuredOutputs
from tests.schemas.generated import SchemaMaker

NUM_SCHEMAS = 320
MAX_TOKENS = 600


@pytest.fixture(scope="module")
def model(tiny_checkpoint, tmp_path_factory):
    """The tiny model with a longer context."""
    directory = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("longer") / "tiny")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": MAX_TOKENS + 8}))
    return LLM(directory)


@pytest.mark.long
def test_every_finished_answer_is_valid(model):
    maker = SchemaMaker(seed=1)
    schemas = [maker.root() for _ in range(NUM_SCHEMAS)]
    params = [
        SamplingParams(seed=seed, max_tokens=MAX_TOKENS, structured_outputs=StructuredOutputs(json=schema))
        for seed, schema in enumerate(schemas)
    ]
    answers = model.generate(["To be"] * NUM_SCHEMAS, params)
    finished = [at for at, answer in enumerate(answers) if answer.finish_reason == "stop"]
    assert len(finished) > NUM_SCHEMAS * 0.7
    for at in finished:
        validator = jsonschema_rs.validator_for(schemas[at], validate_formats=True)
        assert validator.is_valid(json.loads(answers[at].text)), (schemas[at], answers[at].text)
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"}


def part(kind, **properties):
    """A branch of a union as Pydantic writes it."""
    properties = {"kind": {"const": kind, "title": "Kind", "type": "string"}} | properties
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def reference(name):
    return {"$ref": f"#/$defs/{name}"}


def test_answers_to_unions_told_apart_by_a_property_fit_exactly_one_branch(model):
    side = {"type": "number", "minimum": 0, "maximum": 9}
    definitions = {
        "circle": part("circle", radius=side),
        "box": part("box", width=side, inner={"anyOf": [reference("circle"), {"type": "null"}]}),
        "dot": part("dot"),
    }
    union = {"discriminator": {"propertyName": "kind"}, "oneOf": [reference(name) for name in definitions]}
    schema = {"type": "array", "items": union, "minItems": 1, "maxItems": 3, "$defs": definitions}
    params = [
        SamplingParams(seed=seed, max_tokens=MAX_TOKENS, structured_outputs=StructuredOutputs(json=schema))
        for seed in range(40)
    ]
    answers = [answer for answer in model.generate(["So"] * 40, params) if answer.finish_reason == "stop"]
    assert len(answers) > 20
    validator = jsonschema_rs.validator_for(schema)
    shapes = [shape for answer in answers for shape in json.loads(answer.text)]
    assert all(validator.is_valid(json.loads(answer.text)) for answer in answers)
    assert {shape["kind"] for shape in shapes} == {*definitions}
