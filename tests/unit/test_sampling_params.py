"""What `SamplingParams` allow, and what the engine makes of them."""

import msgspec
import pytest

from llm import LLM, SamplingParams
from llm.errors import ConfigError, InvalidArgumentError
from llm.settings.merge import validated


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"typical_p": 0.0}, "typical_p"),
        ({"typical_p": 1.1}, "typical_p"),
        ({"logit_bias": {3: 101.0}}, "logit_bias"),
        ({"logit_bias": {-3: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": ()}, "allowed_token_ids"),
        ({"allowed_token_ids": (-1,)}, "allowed_token_ids"),
        ({"stop_token_ids": (2**32,)}, "stop_token_ids"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),  # would make logits infinite
    ],
)
def test_values_out_of_range_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        validated(SamplingParams(**fields))


def test_params_survive_the_way_through_json():
    params = SamplingParams(
        logit_bias={3: -100.0, 5: 2.5}, allowed_token_ids=(3, 5, 7), typical_p=0.5, prompt_logprobs=2
    )
    assert validated(params) == params
    assert msgspec.json.decode(msgspec.json.encode(params), type=SamplingParams) == params


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return LLM(tiny_checkpoint)


def free(**fields):
    return SamplingParams(max_tokens=12, seed=3, ignore_eos=True, **fields)


def test_allowed_tokens_are_the_only_ones_that_come(model):
    plain = model.generate("To be", free())
    allowed = tuple(sorted({*plain.token_ids[:2], 40, 41}))
    answer = model.generate("To be", free(allowed_token_ids=allowed))
    assert set(answer.token_ids) <= set(allowed)
    forced = model.generate("To be", free(allowed_token_ids=allowed, logit_bias={40: 100.0}))
    assert forced.token_ids == (40,) * 12


def test_ranks_count_the_likelier_tokens(model):
    answer = model.generate("To be", free(logprobs=20, temperature=2.0))
    for entry in answer.logprobs:
        ids = [token_id for token_id, _ in entry.top]
        assert entry.rank == (ids.index(entry.token_id) + 1 if entry.token_id in ids else entry.rank)
        assert entry.token_id in ids or entry.rank > 20
    greedy = model.generate("To be", free(logprobs=0, temperature=0.0))
    assert [entry.rank for entry in greedy.logprobs] == [1] * 12


def test_the_stop_may_be_part_of_the_text(model):
    plain = model.generate("To be", free(temperature=0.0))
    middle = len(plain.text) // 2
    stop = plain.text[middle : middle + 3]
    end = plain.text.index(stop) + len(stop)
    answer = model.generate("To be", free(temperature=0.0, stop=(stop,), include_stop_str_in_output=True))
    assert (answer.text, answer.finish_reason) == (plain.text[:end], "stop")
    without = model.generate("To be", free(temperature=0.0, stop=(stop,)))
    assert without.text == plain.text[: end - len(stop)]


def test_a_stop_tokens_text_may_be_part_of_the_text(model):
    plain = model.generate("To be", free(temperature=0.0))
    stop_id = plain.token_ids[-1]
    first = plain.token_ids.index(stop_id)
    texts = [
        model.generate(
            "To be", free(temperature=0.0, stop_token_ids=(stop_id,), include_stop_str_in_output=included)
        ).text
        for included in (False, True)
    ]
    assert texts[0] == model.tokenizer.decode(plain.token_ids[:first])
    assert texts[1] == model.tokenizer.decode(plain.token_ids[: first + 1])


@pytest.mark.parametrize("field", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_ids_past_the_vocabulary_are_refused(model, field):
    value = {10**6: 1.0} if field == "logit_bias" else (10**6,)
    with pytest.raises(InvalidArgumentError, match=f"`{field}` must be below the vocabulary's size .*, got 1000000"):
        model.generate("To be", SamplingParams(**{field: value}))
