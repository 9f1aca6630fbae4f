"""SmolLM2's quantised file on packed weights, beside the same file unpacked to floats."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llm import LLM, SamplingParams
from llm.inference.runners.base import Step
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.models.layers.packed import packed_matrices
from llm.settings.engine import EngineConfig
from tests.integration.test_smollm2 import FILE, PROMPTS

TEXT = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
LIMITS = {"max_model_len": 1024, "kv_cache_memory_bytes": 256 << 20}
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module")
def packed() -> LLM:
    return LLM(FILE, config=EngineConfig(**LIMITS))


@pytest.fixture(scope="module")
def plain() -> DecoderModel:
    return LLM(FILE, config=EngineConfig(packed_weights=False, **LIMITS)).engine.runner.model


def kernel_logits(model: LLM, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of all tokens of sequences that run in one step."""
    spans = [(0, len(ids)) for ids in sequences]
    size = -(-max(map(len, sequences)) // 16)
    tables = np.arange(size * len(spans), dtype=np.int32).reshape(len(spans), size)
    ids = np.concatenate([np.array(ids, dtype=np.int64) for ids in sequences])
    step = Step.of(spans, tables, ids, 16)
    step.logits_indices = np.arange(len(ids), dtype=np.int64)
    logits = model.engine.runner.run(step).clone()
    return list(torch.split(logits, [len(ids) for ids in sequences]))


@torch.no_grad()
def plain_logits(model: DecoderModel, ids: Sequence[int]) -> Tensor:
    return model(torch.tensor(ids), positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))


def loss(logits: Tensor, ids: Sequence[int]) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(ids[1:])))


def test_all_matrices_stay_packed_in_the_size_of_the_file(packed: LLM) -> None:
    matrices = packed_matrices(packed.engine.runner.model)
    assert [matrix.schemes for matrix in matrices] == [("Q8_0",)] + [("Q4_1",)] * 120
    assert sum(matrix.data.nbytes for matrix in matrices) <= FILE.stat().st_size


def test_perplexity_is_that_of_the_unpacked_weights(packed: LLM, plain: DecoderModel) -> None:
    ids = packed.tokenizer.encode(TEXT)[:320]
    [found] = kernel_logits(packed, [ids])
    assert np.exp(loss(found, ids)) == pytest.approx(np.exp(loss(plain_logits(plain, ids), ids)), rel=5e-3)


def test_greedy_tokens_are_the_unpacked_models_but_for_near_ties(packed: LLM, plain: DecoderModel) -> None:
    turned = 0
    for prompt, output in zip(PROMPTS[:8], packed.generate(PROMPTS[:8], GREEDY), strict=True):
        ids = [*packed.tokenizer.encode(prompt), *output.token_ids]
        rows = plain_logits(plain, ids)[-17:-1]
        chosen = rows.gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
        gaps = rows.max(1).values - chosen
        assert float(gaps.max()) <= 0.5, prompt
        turned += int((gaps > 0).sum())
    assert turned <= 6


def test_logits_have_the_same_bits_alone_and_in_any_batch(packed: LLM) -> None:
    sequences = [packed.tokenizer.encode(prompt) for prompt in PROMPTS]
    together = kernel_logits(packed, sequences)
    for number in (0, 7, 19):
        [alone] = kernel_logits(packed, [sequences[number]])
        assert torch.equal(alone, together[number])


def test_answers_from_the_prefix_cache_are_the_same(packed: LLM) -> None:
    prompt = packed.tokenizer.decode(packed.tokenizer.encode(TEXT)[:100])
    assert packed.generate(prompt, GREEDY).token_ids == packed.generate(prompt, GREEDY).token_ids
