"""The engine's tokens are those of a naive loop: a whole forward pass a token, one request at a time, the same seeds.

Each answer is judged token by token: PyTorch's whole forward pass over prompt and answer, without a cache, gives the
logits, and the slow reference sampler the token that belongs there. A token may differ only where the reference itself
is about to tie; such answers are counted, and judged no further.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm import SamplingParams
from llm.checkpoint import load_model
from llm.errors import LLMError
from llm.inference import Delta, Engine, EngineConfig, load_engine
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.settings.engine import NgramSpeculation
from llm.tokenization import load_tokenizer
from tests.integration.test_smollm2 import FILE, PROMPTS
from tests.reference.sampling import Settings, distribution

NEAR = 1e-4
# A cache that holds one request of the longest context and little more, in bytes a block of the small model's layers.
SMALL_POOL = 11


@dataclass(frozen=True)
class Case:
    """A request."""

    prompt: tuple[int, ...]
    params: SamplingParams


def cases(count: int, vocab_size: int, *, longest: int, max_tokens: int, seed: int = 11) -> list[Case]:
    """Greedy and sampled requests with every parameter; some share long beginnings, some stop early."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(4, vocab_size, longest).tolist()
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 1.0, "top_p": 0.8, "presence_penalty": 0.5},
        {"temperature": 1.3, "min_p": 0.05, "frequency_penalty": 0.4},
        {"temperature": 0.9, "typical_p": 0.7, "min_tokens": 4},
        {"temperature": 0.8, "logit_bias": {5: 3.0, 9: -4.0}, "top_k": 50, "top_p": 0.9},
    ]
    found = []
    for number in range(count):
        own = rng.integers(4, vocab_size, rng.integers(1, longest // 2)).tolist()
        start = shared[: rng.integers(1, longest // 2)] if number % 3 == 0 else []
        # Words come again, so that guesses from the prompt are sometimes right.
        prompt = (*start, *own, *own[: rng.integers(0, 4)])[:longest]
        stop = tuple(rng.integers(4, vocab_size, 3).tolist()) if number % 4 == 0 else ()
        length = int(rng.integers(1, max_tokens + 1))
        values = kinds[number % len(kinds)] | {"max_tokens": length, "seed": int(rng.integers(2**40))}
        values["min_tokens"] = min(values.get("min_tokens", 0), length)
        found.append(Case(prompt, SamplingParams(**values, stop_token_ids=stop, ignore_eos=number % 2 == 0)))
    return found


def answers(engine: Engine, requests: list[Case]) -> list[tuple[int, ...]]:
    """What the engine says to all of them, given at once; nothing is held afterwards."""
    ids = [engine.add_request(case.prompt, case.params) for case in requests]
    found: dict[int, list[int]] = {request_id: [] for request_id in ids}
    while engine.has_unfinished():
        for request_id, event in engine.step():
            assert isinstance(event, Delta), event
            found[request_id] += event.token_ids
    engine.core.check_integrity()
    assert engine.stats()["blocks_free"] == engine.stats()["blocks_total"]
    return [tuple(found[request_id]) for request_id in ids]


class Judge:
    """Judges answers by whole forward passes of `model`; remembers what it has judged."""

    def __init__(self, model: DecoderModel, engine: Engine) -> None:
        self.model = model
        self.tokenizer = engine.tokenizer
        self._verdicts: dict[tuple[str, tuple[int, ...]], bool] = {}

    def near_ties(self, requests: list[Case], found: list[tuple[int, ...]]) -> int:
        """How many answers part from the reference at a near-tie; any other difference fails."""
        return sum(self._is_near_tie(case, answer) for case, answer in zip(requests, found, strict=True))

    def _is_near_tie(self, case: Case, answer: tuple[int, ...]) -> bool:
        key = (repr(case), answer)
        if key not in self._verdicts:
            self._verdicts[key] = self._judge(case, answer)
        return self._verdicts[key]

    def _judge(self, case: Case, answer: tuple[int, ...]) -> bool:
        ends = {*case.params.stop_token_ids, *(() if case.params.ignore_eos else self.tokenizer.eos_ids)}
        rows = self._logits(case, answer)
        for place, token in enumerate(answer):
            is_last = place + 1 == len(answer)
            wanted, is_near = self._expected(rows[place], case, list(answer[:place]), token)
            if token != wanted:
                assert is_near, f"token {place} of {case} is {token}, the reference says {wanted}"
                return True
            assert is_last == (token in ends or place + 1 == case.params.max_tokens)
        return False

    def _expected(self, row: NDArray[np.float32], case: Case, before: list[int], token: int) -> tuple[int, bool]:
        params = case.params
        names = [field.name for field in dataclasses.fields(Settings)]
        values = {name: getattr(params, name) for name in names if hasattr(params, name)}
        settings = Settings(**values | {"logit_bias": dict(params.logit_bias or {}), "choice_index": 0})
        tokenizer = self.tokenizer
        pad_id = None if tokenizer.pad_id in tokenizer.eos_ids else tokenizer.pad_id
        eos_ids = () if params.ignore_eos else tuple(tokenizer.eos_ids)
        found = distribution(
            row, settings, list(case.prompt), before, vocab_size=tokenizer.vocab_size, pad_id=pad_id, eos_ids=eos_ids
        )
        if params.temperature == 0:
            # The gap of what was compared, penalties included: that of the token that came instead.
            return found.token, self._gap(row, case, before, found.token, token) < NEAR
        return found.token, found.accepts(token, NEAR)

    def _gap(self, row: NDArray[np.float32], case: Case, before: list[int], best: int, token: int) -> float:
        penalty = case.params.repetition_penalty
        seen = {*case.prompt, *before}

        def changed(idx: int) -> float:
            logit = float(row[idx])
            return (logit / penalty if logit > 0 else logit * penalty) if idx in seen else logit

        return abs(changed(best) - changed(token))

    @torch.inference_mode()
    def _logits(self, case: Case, answer: tuple[int, ...]) -> NDArray[np.float32]:
        ids = [*case.prompt, *answer[:-1]]
        rows = torch.arange(len(case.prompt) - 1, len(ids))
        context = ForwardContext.for_sequences((len(ids),), rows)
        logits: Tensor = self.model(torch.tensor(ids), positions_of((len(ids),)), context)
        return logits.float().numpy()


SPECULATION = (None, NgramSpeculation(num_draft_tokens=3, min_ngram=1))
MATRIX = [
    pytest.param(running, pool, chunk, cached, guesses, id=f"{running}-{pool}-{chunk}-{cached}-{bool(guesses)}")
    for running, pool, chunk, cached, guesses in itertools.product(
        (1, 8, 64), ("roomy", "tiny"), (1, 7, 64, 512), (True, False), SPECULATION
    )
    if not (chunk == 1 and running == 64)  # as 1 and 8, and slow
]


@pytest.fixture(scope="module")
def small(tiny_checkpoint: Path) -> tuple[Judge, list[Case], list[tuple[int, ...]]]:
    engine = load_engine(tiny_checkpoint)
    requests = cases(200, engine.tokenizer.vocab_size, longest=60, max_tokens=30)
    judge = Judge(load_model(tiny_checkpoint), engine)
    return judge, requests, answers(engine, requests)


def limits(running: int, pool: str, chunk: int, cached: bool, guesses: NgramSpeculation | None) -> EngineConfig:
    block_bytes = 2 * 2 * 2 * 16 * 4 * 8  # two layers' keys and values, two heads of 16 channels, fp32, 8 tokens
    return EngineConfig(
        max_model_len=88,
        block_size=8,
        kv_cache_memory_bytes=None if pool == "roomy" else block_bytes * (SMALL_POOL + 3),
        max_batch_tokens=chunk,
        max_running_requests=running,
        enable_prefix_caching=cached,
        speculative=guesses,
    )


def test_answers_equal_the_naive_loop(small: tuple[Judge, list[Case], list[tuple[int, ...]]]) -> None:
    judge, requests, found = small
    assert judge.near_ties(requests, found) <= len(requests) // 100
    assert len(set(found)) > 150  # the requests are not all alike


@pytest.mark.parametrize(("running", "pool", "chunk", "cached", "guesses"), MATRIX)
def test_kernels_give_the_same_tokens_whatever_the_engine_does(
    tiny_checkpoint: Path,
    small: tuple[Judge, list[Case], list[tuple[int, ...]]],
    running: int,
    pool: str,
    chunk: int,
    cached: bool,
    guesses: NgramSpeculation | None,
) -> None:
    """Not only to rounding: a row's bits don't depend on its batch."""
    _, requests, wanted = small
    engine = load_engine(tiny_checkpoint, config=limits(running, pool, chunk, cached, guesses))
    assert answers(engine, requests) == wanted
    stats = engine.stats()
    if chunk >= 64:  # smaller steps seldom have several requests under way
        assert (stats["num_preemptions"] > 0) == (pool == "tiny" and running > 1)
    assert (stats["prefix_hit_tokens"] > 0) == cached
    assert (stats["drafts_accepted"] > 0) == (guesses is not None and chunk > 1)


@pytest.mark.parametrize(
    ("running", "pool", "chunk", "cached"),
    [(1, "roomy", 512, False), (8, "tiny", 64, True), (64, "roomy", 512, True), (64, "tiny", 7, False)],
)
def test_pytorch_gives_the_naive_loops_tokens(
    tiny_checkpoint: Path,
    small: tuple[Judge, list[Case], list[tuple[int, ...]]],
    running: int,
    pool: str,
    chunk: int,
    cached: bool,
) -> None:
    judge, requests, _ = small
    config = limits(running, pool, chunk, cached, None)
    engine = load_engine(tiny_checkpoint, config=EngineConfig(**{**fields_of(config), "backend": "torch"}))
    found = answers(engine, requests)
    assert judge.near_ties(requests, found) <= len(requests) // 100


def fields_of(config: EngineConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


# SmolLM2: minutes each, `make test-engine`.
# The judge multiplies floats.
EXPANDED: dict[str, Any] = {"max_model_len": 256, "packed_weights": False}
SETTINGS = [
    EngineConfig(**EXPANDED, max_running_requests=1),
    EngineConfig(**EXPANDED, max_running_requests=8, max_batch_tokens=17),
    EngineConfig(**EXPANDED, max_running_requests=64, max_batch_tokens=512, enable_prefix_caching=False),
    EngineConfig(**EXPANDED, block_size=8, kv_cache_memory_bytes=32 * 8 * 46080),
    EngineConfig(**EXPANDED, speculative=NgramSpeculation(min_ngram=1)),
    EngineConfig(**EXPANDED, backend="torch"),
]


def real_cases() -> list[Case]:
    tokenizer = load_tokenizer(FILE)
    drawn = cases(len(PROMPTS), tokenizer.vocab_size, longest=40, max_tokens=32)
    return [Case(tuple(tokenizer.encode(prompt)), case.params) for prompt, case in zip(PROMPTS, drawn, strict=True)]


@pytest.fixture(scope="module")
def real_judge() -> Judge:
    model = load_model(FILE, "float32")
    assert isinstance(model, DecoderModel)
    return Judge(model, load_engine(FILE, dtype="float32", config=SETTINGS[0]))


@pytest.mark.slow
@pytest.mark.parametrize("config", SETTINGS, ids=["1", "8, chunks", "64, no cache", "preempting", "guesses", "torch"])
def test_smollm2_gives_the_naive_loops_tokens(real_judge: Judge, config: EngineConfig) -> None:
    requests = real_cases()
    engine = load_engine(FILE, dtype="float32", config=config)
    assert real_judge.near_ties(requests, answers(engine, requests)) == 0
    assert (engine.stats()["num_preemptions"] > 0) == (config.kv_cache_memory_bytes is not None)


@pytest.mark.slow
def test_smollm2_in_bf16_is_no_further_from_fp32_than_pytorch(real_judge: Judge) -> None:
    """Log-probabilities of the tokens chosen, beside PyTorch's bf16 pass over the same tokens, both against fp32."""
    engine = load_engine(FILE, dtype="bfloat16", config=SETTINGS[0])
    in_bf16 = load_model(FILE, "bfloat16")
    assert isinstance(in_bf16, DecoderModel)
    ours, theirs = [], []
    for case in real_cases()[:12]:
        params = SamplingParams(temperature=0.0, max_tokens=24, logprobs=0, ignore_eos=True)
        request_id = engine.add_request(case.prompt, params)
        deltas = [event for _, event in drained(engine) if isinstance(event, Delta)]
        entries = [entry for delta in deltas for entry in delta.logprobs or ()]
        assert request_id >= 0
        ids = tuple(entry.token_id for entry in entries)
        exact, rounded = (chosen_logprobs(model, case.prompt, ids) for model in (real_judge.model, in_bf16))
        ours += (torch.tensor([entry.logprob for entry in entries]) - exact).abs().tolist()
        theirs += (rounded - exact).abs().tolist()
    assert np.median(ours) <= 1.2 * np.median(theirs)
    assert max(ours) <= 1.2 * max(theirs)


def drained(engine: Engine) -> Iterator[tuple[int, Delta | LLMError]]:
    while engine.has_unfinished():
        yield from engine.step()


@torch.inference_mode()
def chosen_logprobs(model: DecoderModel, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([*prompt, *answer])
    rows = torch.arange(len(prompt) - 1, len(ids) - 1)
    logits: Tensor = model(ids[:-1], positions_of((len(ids) - 1,)), ForwardContext.for_sequences((len(ids) - 1,), rows))
    return logits.float().log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).squeeze(1)
