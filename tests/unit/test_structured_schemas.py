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
