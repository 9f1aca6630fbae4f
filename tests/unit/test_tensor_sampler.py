"""The sampler of tensors beside Rust's and the slow twin."""

from dataclasses import asdict

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llm import SamplingParams, _rust
from llm.errors import InvalidArgumentError
from tests.reference import sampling as reference
from tests.reference.sampling import Settings
from tests.reference.tensor_sampler import Sampler, SamplingRow

VOCAB, SIZE, PAD, EOS = 90, 100, 7, 2
no_deadline = hypothesis_settings(deadline=None)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

settings_strategy = st.builds(
    Settings,
    seed=st.integers(0, 2**63 - 1),
    temperature=st.one_of(st.just(0.0), st.floats(0.1, 3.0)),
    top_k=st.integers(0, SIZE + 5),
    top_p=st.one_of(st.just(1.0), st.floats(0.05, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.01, 0.9)),
    typical_p=st.one_of(st.just(1.0), st.floats(0.05, 1.0)),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), max_size=4),
    allowed_token_ids=st.none() | st.lists(st.integers(8, VOCAB - 1), min_size=4, unique=True).map(tuple),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
    presence_penalty=st.floats(-2.0, 2.0),
    frequency_penalty=st.floats(-2.0, 2.0),
    min_tokens=st.integers(0, 6),
    stop_token_ids=st.lists(st.integers(0, 6), max_size=3).map(tuple),
)
histories = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def row_of(settings, prompt_ids=(), output_ids=(), **fields):
    values = asdict(settings) | fields
    choice_index = values.pop("choice_index")
    params = SamplingParams(**values)
    return SamplingRow(params=params, prompt_ids=prompt_ids, output_ids=output_ids, choice_index=choice_index)


def rust_tokens(logits, rows, **fields):
    params = [
        _rust.RequestParams(msgspec.structs.replace(row.params, **fields), choice_index=row.choice_index)
        for row in rows
    ]
    prompts = [np.array(row.prompt_ids, np.uint32) for row in rows]
    outputs = [np.array(row.output_ids, np.uint32) for row in rows]
    return _rust.sample(logits.copy(), params, prompts, outputs, vocab_size=VOCAB, pad_id=PAD, eos_ids=[EOS])


@pytest.mark.parametrize("device", DEVICES)
@no_deadline
@given(data=st.data(), num_rows=st.integers(1, 5), steps=st.booleans(), row_seed=st.integers(0, 2**32 - 1))
def test_tensors_are_sampled_as_rust_does(device, data, num_rows, steps, row_seed):
    generator = np.random.default_rng(row_seed)
    logits = generator.normal(0, 3, (num_rows, SIZE)).astype(np.float32)
    if steps:
        logits = np.round(logits)
    settings = [data.draw(settings_strategy) for _ in range(num_rows)]
    rows = [row_of(setting, data.draw(histories), data.draw(histories)) for setting in settings]
    sampled = Sampler(VOCAB, PAD, (EOS,))(torch.from_numpy(logits).to(device), rows)
    assert sampled.is_finite.all()
    expected = rust_tokens(logits, rows).token_ids.tolist()
    for index, token in enumerate(sampled.token_ids.tolist()):
        if token != expected[index]:  # only where rounding decides
            row = rows[index]
            distribution = reference.distribution(
                logits[index],
                settings[index],
                row.prompt_ids,
                row.output_ids,
                vocab_size=VOCAB,
                pad_id=PAD,
                eos_ids=(EOS,),
            )
            assert distribution.accepts(token), (token, expected[index])


@pytest.mark.parametrize("device", DEVICES)
def test_most_draws_are_equal_to_the_last_one(device):
    logits = np.random.default_rng(0).normal(0, 2, (500, SIZE)).astype(np.float32)
    rows = [row_of(Settings(seed=seed, temperature=0.8, top_k=40, top_p=0.9), [1, 2], [3]) for seed in range(500)]
    sampled = Sampler(VOCAB, PAD, (EOS,))(torch.from_numpy(logits).to(device), rows)
    assert (sampled.token_ids.cpu().numpy() == rust_tokens(logits, rows).token_ids).mean() > 0.99


@pytest.mark.parametrize("device", DEVICES)
def test_logprobs_ranks_and_likeliest_equal_rusts(device):
    logits = np.round(np.random.default_rng(0).normal(0, 2, (20, SIZE)), 1).astype(np.float32)
    rows = [row_of(Settings(seed=seed), logprobs=4) for seed in range(20)]
    sampled = Sampler(VOCAB, PAD, (EOS,))(torch.from_numpy(logits).to(device), rows)
    expected = rust_tokens(logits, rows, logprobs=4)
    assert sampled.token_ids.tolist() == expected.token_ids.tolist()
    assert sampled.ranks.tolist() == expected.ranks.tolist()
    np.testing.assert_allclose(sampled.logprobs.cpu(), expected.logprobs, rtol=1e-5, atol=1e-5)
    assert sampled.top_ids.tolist() == [ids for ids, _ in expected.top_logprobs]
    np.testing.assert_allclose(
        sampled.top_logprobs.cpu(), [values for _, values in expected.top_logprobs], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("top_k", [0, 3, 2000])
def test_wide_rows_take_the_way_without_a_sort_or_with_one(top_k):
    logits = np.round(np.random.default_rng(1).normal(0, 3, (8, 5000)), 2).astype(np.float32)
    rows = [row_of(Settings(seed=seed, top_k=top_k, top_p=0.95)) for seed in range(8)]
    sampled = Sampler(5000)(torch.from_numpy(logits), rows)
    params = [_rust.RequestParams(SamplingParams(seed=seed, top_k=top_k, top_p=0.95)) for seed in range(8)]
    none = [np.array([], np.uint32)] * 8
    assert sampled.token_ids.tolist() == _rust.sample(logits.copy(), params, none, none).token_ids.tolist()


def test_rows_that_are_not_finite_are_told():
    logits = torch.zeros(4, 8)
    logits[0, 1] = torch.nan
    logits[1, 1] = torch.inf
    logits[2] = -torch.inf
    rows = [row_of(Settings(seed=seed)) for seed in range(4)]
    assert Sampler(8)(logits, rows).is_finite.tolist() == [False, False, False, True]


def test_logits_stay_as_they_are_and_may_be_bfloat16():
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = logits.clone()
    rows = [row_of(Settings(seed=seed), [1, 2, 3], repetition_penalty=1.5) for seed in range(3)]
    sampled = Sampler(VOCAB)(logits, rows)
    assert torch.equal(logits, before)
    assert sampled.token_ids.tolist() == Sampler(VOCAB)(logits.float(), rows).token_ids.tolist()


def test_what_cannot_be_sampled_says_why():
    with pytest.raises(InvalidArgumentError, match=r"one row for each of 1 requests, got \(2, 8\)"):
        Sampler(8)(torch.zeros(2, 8), [row_of(Settings())])
    with pytest.raises(InvalidArgumentError, match="every row must have a seed"):
        Sampler(8)(torch.zeros(1, 8), [row_of(Settings(), seed=None)])
