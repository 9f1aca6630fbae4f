"""Answers of a form: what `structured_outputs` takes, and what the engine makes of it, without a server."""

import json
import re

import msgspec
import pytest

from llm import LLM, SamplingParams, StructuredOutputs
from llm.errors import ConfigError, InvalidArgumentError
from llm.inference import EngineConfig, NgramSpeculation
from llm.settings.merge import validated

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return LLM(tiny_checkpoint)


def formed(seed=0, max_tokens=100, **form):
    return SamplingParams(max_tokens=max_tokens, seed=seed, structured_outputs=StructuredOutputs(**form))


@pytest.mark.parametrize("fields", [{}, {"regex": "a", "choice": ("b",)}, {"json": {}, "json_object": True}])
def test_exactly_one_form_is_given(fields):
    with pytest.raises(InvalidArgumentError, match="give exactly one of `json`, `json_object`, `regex`"):
        StructuredOutputs(**fields)


def test_forms_survive_the_way_through_json():
    params = formed(json=PERSON, disable_any_whitespace=True)
    assert validated(params) == params
    assert msgspec.json.decode(msgspec.json.encode(params), type=SamplingParams) == params
    with pytest.raises(ConfigError, match="structured_outputs"):
        validated(msgspec.structs.replace(params, structured_outputs={"json": {}, "regexp": "a"}))


@pytest.mark.parametrize("schema", [PERSON, json.dumps(PERSON)])
def test_a_json_answer_follows_its_schema(model, schema):
    for seed in range(4):
        answer = model.generate("To be", formed(seed, json=schema))
        person = json.loads(answer.text)
        assert answer.finish_reason == "stop"
        assert list(person) == ["name", "age"]
        assert len(person["name"]) <= 8
        assert 0 <= person["age"] <= 99


def test_every_other_form_holds(model):
    assert re.fullmatch(r"(19|20)\d\d", model.generate("In", formed(regex=r"(19|20)\d\d")).text)
    assert {model.generate("So", formed(seed, choice=("yes", "no"))).text for seed in range(8)} == {"yes", "no"}
    lark = 'start: "a" %json {"type": "boolean"} | "b"'
    assert model.generate("So", formed(grammar=lark)).text in ("atrue", "afalse", "b")
    answer = model.generate("So", formed(json_object=True))
    assert answer.finish_reason == "length" or isinstance(json.loads(answer.text), dict)


def test_forced_text_is_cut_as_the_tokenizer_cuts_it(model):
    sentence = "To be, or not to be, that is the question"
    expected = model.tokenizer.encode(sentence)
    for seed in range(4):
        answer = model.generate("In", formed(seed, regex=f"{sentence}[.!?]"))
        assert answer.text[:-1] == sentence
        # The last pieces may join with what follows.
        assert list(answer.token_ids)[: len(expected) - 2] == expected[:-2]


def test_a_cut_answer_says_length(model):
    answer = model.generate("To be", formed(json=PERSON, max_tokens=3))
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 3)


def test_answers_are_those_of_separate_requests(model):
    several = model.generate("To be", msgspec.structs.replace(formed(5, json=PERSON), n=3))
    first = model.generate("To be", formed(5, json=PERSON))
    assert several.choices[0].text == first.text if several.choices else several.text == first.text


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"json": {"items": {"not": {}}}}, "`json` has the keyword `not` at #/items, which is not supported"),
        ({"json": "{"}, "`json` must be a JSON schema"),
        ({"regex": "(?=a)b"}, "`regex` is invalid: at 1"),
        ({"grammar": "start: nothing"}, "`grammar` is invalid: at 1"),
        ({"choice": ("a", "")}, "`choice` must be 1 to 10000 strings with text, got 2 of which 1 are empty"),
    ],
)
def test_a_form_that_cannot_be_kept_is_refused(model, form, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        model.generate("To be", formed(**form))


def test_a_mask_that_allows_all_changes_no_draw(model):
    for seed in range(3):
        plain = model.generate(
            "To be", SamplingParams(max_tokens=20, seed=seed, allowed_token_ids=tuple(range(40, 120)))
        )
        masked = formed(seed, max_tokens=20, regex=r"(?s:.*)")
        masked = msgspec.structs.replace(masked, allowed_token_ids=tuple(range(40, 120)))
        assert model.generate("To be", masked).token_ids == plain.token_ids


def test_a_mask_that_allows_all_changes_no_draw_with_guesses_choices_stop_strings_and_too_few_blocks(
    tiny_checkpoint, model
):
    letters = {"seed": 5, "n": 3, "allowed_token_ids": tuple(range(40, 120))}
    free = [SamplingParams(max_tokens=40, stop=stop, **letters) for stop in ((), ("a", "zz"), ("Q",))]
    masked = [msgspec.structs.replace(each, structured_outputs=StructuredOutputs(regex=r"(?s:.*)")) for each in free]
    prompts = ["To be", "O, O, O, O, O", "To be"]
    cramped = EngineConfig(
        max_model_len=96,
        block_size=8,
        kv_cache_memory_bytes=2 * 2 * 2 * 16 * 4 * 8 * 13,  # blocks for one long answer
        speculative=NgramSpeculation(num_draft_tokens=3, max_ngram=3, min_ngram=1),
    )
    other = LLM(tiny_checkpoint, config=cramped)
    found = [
        [(choice.token_ids, choice.text, choice.finish_reason) for out in outputs for choice in out.choices]
        for outputs in (model.generate(prompts, free), other.generate(prompts, masked))
    ]
    assert found[0] == found[1]
    assert {finish_reason for _, _, finish_reason in found[0]} == {"stop", "length"}
    stats = other.engine.stats()
    assert min(stats["num_preemptions"], stats["drafts_accepted"]) > 0


def test_a_text_is_checked_without_an_answer(model):
    grammar = model.engine.compile_grammar(formed(json=PERSON))
    assert grammar.accepts(b'{"name": "Al", "age": 9}')
    assert not grammar.accepts(b'{"name": "Al"}')
    assert not grammar.accepts(b"\xff")
