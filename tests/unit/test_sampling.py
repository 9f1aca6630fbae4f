"""The Rust sampler beside its slow twin, from Python as users call it."""

from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llm import _rust
from llm.errors import InvalidArgumentError
from llm.settings.sampling import SamplingParams
from tests.reference import sampling as reference
from tests.reference.sampling import Settings

VOCAB = 40
# A busy machine is no failure.
no_deadline = hypothesis_settings(deadline=None)
NO_IDS = np.array([], np.uint32)
UNIFORM_SEEDS = range(200)


def as_ids(values):
    return np.array(values, np.uint32)


def params(settings, **overrides):
    fields = asdict(settings) | overrides
    choice_index = fields.pop("choice_index")
    return _rust.RequestParams(SamplingParams(max_tokens=100, **fields), choice_index=choice_index)


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
    typical_p=st.one_of(st.just(1.0), st.floats(0.05, 1.0)),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 5), st.floats(-100, 100, width=32), max_size=4),
    allowed_token_ids=st.none() | st.lists(st.integers(8, VOCAB - 5), min_size=4, unique=True).map(tuple),
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


# Many chunks of a row's maxima: broad, peaked, with many equals, all equal.
SHAPES = {
    "normal": lambda rng, size: rng.normal(0, 3, size),
    "exponential": lambda rng, size: rng.exponential(2.0, size),
    "steps": lambda rng, size: rng.integers(-3, 4, size) * 0.5,
    "equal": lambda _, size: np.zeros(size),
    "impossible": lambda rng, size: np.where(rng.random(size) < 0.9, -np.inf, rng.normal(0, 3, size)),
}


def long_row(shape, seed, size):
    row = SHAPES[shape](np.random.default_rng(seed), size).astype(np.float32)
    row[-1] = 0.5
    return row


@no_deadline
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    row_seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([127, 128, 129, 1000, 1500]),
    settings=settings_strategy,
    top_k=st.sampled_from([0, 1, 3, 5, 8, 12, 50, 400]),
    num_seen=st.integers(0, 300),
)
def test_sample_equals_the_reference_over_many_chunks(shape, row_seed, size, settings, top_k, num_seen):
    settings = replace(settings, top_k=top_k)
    if settings.allowed_token_ids is not None:
        settings = replace(settings, allowed_token_ids=(*settings.allowed_token_ids, *range(size // 2, size)))
    row = long_row(shape, row_seed, size)
    seen = np.random.default_rng(row_seed + 1).integers(0, size, num_seen).tolist()
    prompt_ids, output_ids = seen[::2], seen[1::2]
    expected = reference.distribution(row, settings, prompt_ids, output_ids, vocab_size=size)
    token = sample_one(row, settings, prompt_ids, output_ids)
    assert expected.accepts(token), (token, expected.token)
    assert expected.near_tie or expected.probabilities[token] > 0


@no_deadline
@given(shape=st.sampled_from(sorted(SHAPES)), row_seed=st.integers(0, 2**32 - 1), settings=settings_strategy)
def test_every_kept_token_is_drawn_and_no_other(shape, row_seed, settings):
    settings = replace(settings, allowed_token_ids=None)
    row = long_row(shape, row_seed, 300)
    expected = reference.distribution(row, settings, [], [], vocab_size=300)
    if expected.near_tie:
        return
    cumulative = np.cumsum(expected.probabilities)
    # A uniform number in the middle of each token's own share draws it: the nearest of many streams.
    drawn = np.array([reference.uniform(seed, 0) for seed in UNIFORM_SEEDS])
    middles = {
        token: cumulative[token] - expected.probabilities[token] / 2 for token in expected.probabilities.nonzero()[0]
    }
    wanted = {token: UNIFORM_SEEDS[int(np.abs(drawn - middle).argmin())] for token, middle in middles.items()}
    for token, seed in wanted.items():
        choice = replace(settings, seed=seed, choice_index=0)
        again = reference.distribution(row, choice, [], [], vocab_size=300)
        assert again.accepts(sample_one(row, choice)), token


@no_deadline
@given(data=st.data(), shape=st.sampled_from(sorted(SHAPES)), row_seed=st.integers(0, 2**32 - 1))
def test_bfloat16_rows_are_sampled_as_the_same_numbers_in_float32(data, shape, row_seed):
    settings = data.draw(settings_strategy)
    bits = (np.stack([long_row(shape, row_seed + row, 500) for row in range(3)]).view(np.uint32) >> 16).astype(
        np.uint16
    )
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    requests = [params(settings, logprobs=5, allowed_token_ids=None, seed=seed) for seed in range(3)]
    history = [as_ids([1, 2, 3])] * 3, [as_ids([4, 4])] * 3
    expected = _rust.sample(wide.copy(), requests, *history)
    for given_bits in (bits.copy(), bits.copy().view(np.int16)):
        sampled = _rust.sample(given_bits, requests, *history)
        assert sampled.token_ids.tolist() == expected.token_ids.tolist()
        assert sampled.logprobs.tolist() == expected.logprobs.tolist()
        assert sampled.top_logprobs == expected.top_logprobs
        assert np.array_equal(given_bits.view(np.uint16), bits)


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        Settings(seed=11),
        Settings(seed=12, temperature=0.7, top_k=8),
        Settings(seed=13, top_p=0.8),
        Settings(seed=14, min_p=0.2),
        Settings(seed=16, typical_p=0.6),
        Settings(seed=17, logit_bias={3: 2.5, 5: -100.0}, typical_p=0.9, top_p=0.95),
        Settings(seed=18, allowed_token_ids=(0, 4, 9, 30, 31)),
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
    expected_rank = 1 + int((expected > expected[sampled.token_ids[0]]).sum())
    assert sampled.ranks.tolist() == [expected_rank, 0]
    assert np.isnan(sampled.logprobs[1])
    assert sampled.top_logprobs[1] is None


def test_top_logprobs_leave_out_what_is_impossible():
    row = np.array([[0.0, -np.inf, 1.0]], np.float32)
    sampled = _rust.sample(row, [params(Settings(), logprobs=3)], [NO_IDS], [NO_IDS])
    assert sampled.top_logprobs[0][0] == [2, 0]


@no_deadline
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    row_seed=st.integers(0, 2**32 - 1),
    token=st.integers(0, 499),
    n=st.integers(0, 7),
)
def test_token_logprobs_equal_the_reference(shape, row_seed, token, n):
    mask = {"vocab_size": 480, "pad_id": 7}
    rows = np.stack([long_row(shape, row_seed + row, 500) for row in range(2)])
    rows[:, 1] = 0.25
    expected = [reference.score(row, token, n, **mask) for row in rows]
    scored = _rust.token_logprobs(rows, as_ids([token, token]), n, **mask)
    assert scored.token_ids.tolist() == [token, token]
    np.testing.assert_allclose(scored.logprobs, [score.logprob for score in expected], rtol=1e-5, atol=1e-6)
    assert scored.ranks.tolist() == [score.rank for score in expected]
    if n == 0:
        assert scored.top_logprobs == [None, None]
        return
    for (ids, values), score in zip(scored.top_logprobs, expected, strict=True):
        assert ids == [token for token, _ in score.top]
        np.testing.assert_allclose(values, [value for _, value in score.top], rtol=1e-5, atol=1e-6)


def test_rank_and_logprobs_are_of_the_row_before_it_is_changed():
    row = np.zeros((1, 300), np.float32)
    row[0, [10, 200, 280]] = [3.0, 2.0, 1.0]
    request = params(Settings(temperature=0.0), logit_bias={10: -100, 200: -100}, logprobs=2)
    sampled = _rust.sample(row, [request], [NO_IDS], [NO_IDS])
    assert (sampled.token_ids[0], sampled.ranks[0]) == (280, 3)
    assert sampled.top_logprobs[0][0] == [10, 200]


def test_token_logprobs_want_one_id_a_row():
    message = r"`token_ids` must be 2 ids below 4, one for each row of `logits`, got 1 of which the highest is 9"
    with pytest.raises(InvalidArgumentError, match=message):
        _rust.token_logprobs(np.zeros((2, 4), np.float32), as_ids([9]))


def test_an_allowed_id_that_is_banned_leaves_nothing():
    request = params(Settings(min_tokens=1, stop_token_ids=(3,)), allowed_token_ids=[3])
    with pytest.raises(InvalidArgumentError, match=r"after the grammar, `allowed_token_ids`.*got -inf everywhere"):
        _rust.sample(np.zeros((1, 8), np.float32), [request], [NO_IDS], [NO_IDS])


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
        _rust.RequestParams(SamplingParams(max_tokens=1, seed=0, top_p=1.5))
    with pytest.raises(InvalidArgumentError, match=r"`typical_p` must be in \(0, 1\], got 0"):
        _rust.RequestParams(SamplingParams(max_tokens=1, seed=0, typical_p=0.0))
    with pytest.raises(InvalidArgumentError, match=r"`logit_bias\[7\]` must be in \[-100, 100\], got 101"):
        _rust.RequestParams(SamplingParams(max_tokens=1, seed=0, logit_bias={7: 101.0}))
    with pytest.raises(InvalidArgumentError, match=r"`top_k` is invalid: .*'str' object .* got 'many'"):
        _rust.RequestParams(SamplingParams(seed=0, top_k="many"))
    with pytest.raises(InvalidArgumentError, match="has no attribute 'temperature'"):
        _rust.RequestParams(object())
    with pytest.raises(InvalidArgumentError, match="`allowed_token_ids` must name at least one id, got none"):
        _rust.RequestParams(SamplingParams(max_tokens=1, seed=0, allowed_token_ids=[]))
    with pytest.raises(InvalidArgumentError, match=r"`min_tokens` must be at most `max_tokens` \(1\), got 2"):
        _rust.RequestParams(SamplingParams(max_tokens=1, seed=0, min_tokens=2))
