"""The Rust sampler beside its slow twin, from Python as users call it."""

from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llm import _rust
from llm.errors import InvalidArgumentError
from tests.reference import sampling as reference
from tests.reference.sampling import Settings

VOCAB = 40
# A busy machine is no failure.
no_deadline = hypothesis_settings(deadline=None)
NO_IDS = np.array([], np.uint32)


def as_ids(values):
    return np.array(values, np.uint32)


def params(settings, **overrides):
    return _rust.RequestParams(max_tokens=100, **(asdict(settings) | overrides))


def sample_one(logits, settings, prompt_ids=(), output_ids=(), **options):
    row = np.array(logits, np.float32)[None]
    return _rust.sample(row, [params(settings)], [as_ids(prompt_ids)], [as_ids(output_ids)], **options).token_ids[0]


settings_strategy = st.builds(
    Settings,
    seed=st.integers(0, 2**64 - 1),
    choice_index=st.integers(0, 5),
    temperature=st.one_of(st.just(0.0), st.floats(0.1, 3.0)),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.one_of(st.just(1.0), st.floats(0.05, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.01, 0.9)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
    presence_penalty=st.floats(-2.0, 2.0),
    frequency_penalty=st.floats(-2.0, 2.0),
    min_tokens=st.integers(0, 6),
    stop_token_ids=st.lists(st.integers(0, VOCAB - 5), max_size=3).map(tuple),
)
token_lists = st.lists(st.integers(0, VOCAB - 5), max_size=8)
rows = st.lists(st.floats(-8.0, 8.0, width=32), min_size=VOCAB, max_size=VOCAB)


@no_deadline
@given(row=rows, settings=settings_strategy, prompt_ids=token_lists, output_ids=token_lists)
def test_sample_equals_the_reference(row, settings, prompt_ids, output_ids):
    mask = {"vocab_size": VOCAB - 3, "pad_id": 7, "eos_ids": (2,)}
    expected = reference.distribution(np.array(row, np.float32), settings, prompt_ids, output_ids, **mask)
    token = sample_one(row, settings, prompt_ids, output_ids, **mask)
    assert expected.accepts(token), (token, expected.token)
    assert expected.near_tie or expected.probabilities[token] > 0


@no_deadline
@given(data=st.data(), num_rows=st.integers(1, 9))
def test_a_row_is_sampled_as_if_alone(data, num_rows):
    logits = [data.draw(rows) for _ in range(num_rows)]
    settings = [data.draw(settings_strategy) for _ in range(num_rows)]
    prompts = [as_ids(data.draw(token_lists)) for _ in range(num_rows)]
    outputs = [as_ids(data.draw(token_lists)) for _ in range(num_rows)]
    batch = np.array(logits, np.float32)
    together = _rust.sample(batch, [params(setting) for setting in settings], prompts, outputs)
    alone = [sample_one(*row) for row in zip(logits, settings, prompts, outputs, strict=True)]
    assert together.token_ids.tolist() == alone


@pytest.mark.parametrize(
    "settings",
    [
        Settings(seed=11),
        Settings(seed=12, temperature=0.7, top_k=8),
        Settings(seed=13, top_p=0.8),
        Settings(seed=14, min_p=0.2),
        Settings(seed=15, temperature=1.5, top_k=12, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
    ],
    ids=str,
)
def test_sample_draws_from_the_references_distribution(settings):
    num_draws, prompt_ids = 20_000, [1, 2, 3]
    logits = np.random.default_rng(5).normal(0, 2, VOCAB).astype(np.float32)
    expected = reference.distribution(logits, settings, prompt_ids, [], vocab_size=VOCAB).probabilities
    batch = np.tile(logits, (num_draws, 1))
    # One request for each seed: what a service with unseeded requests draws.
    requests = [params(settings, seed=settings.seed * num_draws + idx) for idx in range(num_draws)]
    prompts, outputs = [as_ids(prompt_ids)] * num_draws, [NO_IDS] * num_draws
    counts = Counter(_rust.sample(batch, requests, prompts, outputs).token_ids.tolist())
    support = {token for token in range(VOCAB) if expected[token] > 0}
    assert set(counts) <= support
    assert {token for token in support if expected[token] * num_draws > 20} <= set(counts)
    # Pool what is expected less than 5 times, as the test's approximation wants.
    large = [token for token in support if expected[token] * num_draws >= 5]
    rest = num_draws - sum(counts[token] for token in large)
    rest_expected = num_draws * (1 - sum(expected[token] for token in large))
    chi2 = sum((counts[token] - expected[token] * num_draws) ** 2 / (expected[token] * num_draws) for token in large)
    chi2 += (rest - rest_expected) ** 2 / rest_expected if rest_expected >= 5 else 0.0
    # Mean k, variance 2k: five deviations are far beyond chance for a fixed seed and near for a wrong law.
    degrees = len(large)
    assert chi2 < degrees + 5 * np.sqrt(2 * degrees)


def test_output_index_moves_the_stream():
    logits, settings = np.zeros(VOCAB), Settings(seed=3)
    drawn = [sample_one(logits, settings, output_ids=[0] * count) for count in range(50)]
    expected = [int(reference.uniform(3, count) * VOCAB) for count in range(50)]
    assert drawn == expected


@no_deadline
@given(seed=st.integers(0, 2**64 - 1), output_idx=st.integers(0, 2**64 - 1), choice=st.integers(0, 2**32 - 1))
def test_philox_uniform_equals_the_reference(seed, output_idx, choice):
    drawn = _rust.philox_uniform(seed, output_idx, choice_index=choice, draw_idx=2)
    assert drawn == reference.uniform(seed, output_idx, choice, 2)
    assert 0.0 <= drawn < 1.0


def test_logprobs_are_log_softmax_of_the_masked_row():
    logits = np.random.default_rng(1).normal(0, 3, (2, VOCAB)).astype(np.float32)
    requests = [params(Settings(temperature=0.5, presence_penalty=2.0), logprobs=4), params(Settings(temperature=0.0))]
    history = [as_ids([int(logits[0].argmax())]), NO_IDS]
    sampled = _rust.sample(logits.copy(), requests, [NO_IDS, NO_IDS], history, vocab_size=VOCAB - 3, pad_id=7)
    expected = reference.log_softmax(reference.mask_logits(logits[0], VOCAB - 3, 7))
    ids, values = sampled.top_logprobs[0]
    assert ids == np.argsort(-expected, kind="stable")[:4].tolist()
    np.testing.assert_allclose(values, expected[ids], rtol=1e-6)
    np.testing.assert_allclose(sampled.logprobs[0], expected[sampled.token_ids[0]], rtol=1e-6)
    assert np.isnan(sampled.logprobs[1])
    assert sampled.top_logprobs[1] is None


def test_top_logprobs_leave_out_what_is_impossible():
    row = np.array([[0.0, -np.inf, 1.0]], np.float32)
    sampled = _rust.sample(row, [params(Settings(), logprobs=3)], [NO_IDS], [NO_IDS])
    assert sampled.top_logprobs[0][0] == [2, 0]


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((1, 4)), "got float64 of shape [1, 4]"),
        (np.zeros(4, np.float32), "got float32 of shape [4]"),
        (np.zeros((1, 8), np.float32)[:, ::2], "must be a writable C-contiguous float32 array"),
        (np.asfortranarray(np.zeros((2, 4), np.float32)), "must be a writable C-contiguous float32 array"),
        ([[0.0]], "got <class 'list'>"),
        (np.zeros((2, 0), np.float32), "at least one column"),
        (np.zeros((2, 4), np.float32), "one entry for each of 2 rows of `logits`, got 1, 1 and 1"),
        (np.array([[0.0, np.nan]], np.float32), "row 0: the model's logits must hold no NaN or +inf"),
        (np.array([[0.0, np.inf]], np.float32), "got inf at token id 1"),
        (np.full((1, 3), -np.inf, np.float32), "got -inf everywhere"),
    ],
)
def test_sample_refuses_bad_logits(logits, message):
    with pytest.raises(InvalidArgumentError) as error:
        _rust.sample(logits, [params(Settings())], [NO_IDS], [NO_IDS])
    assert message in str(error.value)


def test_sample_refuses_read_only_logits():
    logits = np.zeros((1, 4), np.float32)
    logits.flags.writeable = False
    with pytest.raises(InvalidArgumentError, match="writable"):
        _rust.sample(logits, [params(Settings())], [NO_IDS], [NO_IDS])


def test_request_params_name_the_field_and_its_range():
    with pytest.raises(InvalidArgumentError, match=r"`top_p` must be in \(0, 1\], got 1.5"):
        _rust.RequestParams(max_tokens=1, seed=0, top_p=1.5)
    with pytest.raises(InvalidArgumentError, match=r"`min_tokens` must be at most `max_tokens` \(1\), got 2"):
        _rust.RequestParams(max_tokens=1, seed=0, min_tokens=2)
