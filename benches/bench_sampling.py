"""The sampler from Python beside a plain torch one, on the same logits.

`pytest benches/bench_sampling.py`; set `RAYON_NUM_THREADS=1` and `OMP_NUM_THREADS=1` to compare single threads.
"""

import numpy as np
import pytest
import torch

from llm import _rust

TEMPERATURE, TOP_K, TOP_P, REPETITION = 0.8, 50, 0.9, 1.1
SIZES = [(1, 2_048), (1, 32_768), (16, 32_768), (1, 131_072)]


def make_logits(num_rows, vocab_size):
    """A few likely tokens over a broad floor, as a model gives them (B, V)."""
    return np.random.default_rng(0).exponential(2.0, (num_rows, vocab_size)).astype(np.float32)


def make_history(vocab_size):
    return np.random.default_rng(1).integers(0, vocab_size, 512).astype(np.uint32)


def torch_probabilities(logits, history):
    """The usual chain of processors: penalty, temperature, top-k, then top-p by a full sort (B, V)."""
    seen = torch.gather(logits, 1, history)
    logits = logits.scatter(1, history, torch.where(seen > 0, seen / REPETITION, seen * REPETITION)) / TEMPERATURE
    border = torch.topk(logits, TOP_K).values[:, -1:]
    logits = logits.masked_fill(logits < border, -torch.inf)
    ranked, order = torch.sort(logits, descending=True)
    before = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1)
    dropped = (before >= TOP_P).scatter(1, order, before >= TOP_P)
    return logits.masked_fill(dropped, -torch.inf).softmax(-1)


def torch_sample(logits, history):
    return torch.multinomial(torch_probabilities(logits, history), 1)


def rust_arguments(logits, history, first_seed=0):
    """Arguments of `sample`, with a seed of its own for each row."""
    fields = {"temperature": TEMPERATURE, "top_k": TOP_K, "top_p": TOP_P, "repetition_penalty": REPETITION}
    rows = range(len(logits))
    params = [_rust.RequestParams(max_tokens=1, seed=first_seed + row, **fields) for row in rows]
    return logits.copy(), params, [history for _ in rows], [np.array([], np.uint32) for _ in rows]


def assert_equal_support(logits, history):
    row, num_draws = logits[:1], 4_000
    batch = np.tile(row, (64, 1))
    drawn = set()
    for first_seed in range(0, num_draws, 64):
        drawn |= set(_rust.sample(*rust_arguments(batch, history, first_seed)).token_ids.tolist())
    index = torch.from_numpy(history.astype(np.int64))[None]
    expected = torch_probabilities(torch.from_numpy(row), index)[0].nonzero().flatten().tolist()
    assert drawn == set(expected)


@pytest.mark.parametrize(("num_rows", "vocab_size"), SIZES)
def test_rust(benchmark, num_rows, vocab_size):
    logits, history = make_logits(num_rows, vocab_size), make_history(vocab_size)
    assert_equal_support(logits, history)
    benchmark.pedantic(_rust.sample, setup=lambda: (rust_arguments(logits, history), {}), rounds=30)


@pytest.mark.parametrize(("num_rows", "vocab_size"), SIZES)
def test_torch(benchmark, num_rows, vocab_size):
    logits = torch.from_numpy(make_logits(num_rows, vocab_size))
    history = torch.from_numpy(make_history(vocab_size).astype(np.int64)).expand(num_rows, -1)
    benchmark.pedantic(torch_sample, args=(logits, history), rounds=30, warmup_rounds=2)


@pytest.mark.parametrize(("num_rows", "vocab_size"), SIZES)
def test_rust_greedy(benchmark, num_rows, vocab_size):
    logits = make_logits(num_rows, vocab_size)
    no_ids = [np.array([], np.uint32)] * num_rows
    params = [_rust.RequestParams(max_tokens=1, seed=0, temperature=0.0)] * num_rows
    sampled = benchmark(_rust.sample, logits, params, no_ids, no_ids)
    assert sampled.token_ids.tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize(("num_rows", "vocab_size"), SIZES)
def test_torch_greedy(benchmark, num_rows, vocab_size):
    benchmark(torch.argmax, torch.from_numpy(make_logits(num_rows, vocab_size)), -1)
