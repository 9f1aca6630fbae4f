"""Speculation changes no answer, with a real small model."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm import LLM, SamplingParams
from llm.errors import ConfigError
from llm.inference import DraftSpeculation, EngineConfig, NgramSpeculation, load_engine
from llm.settings.merge import from_builtins
from llm.tokenization import BPETokenizer
from tests.unit.inference_samples import GREEDY, PROMPTS


@pytest.mark.parametrize("max_batch_tokens", [5, 2048])
def test_guesses_change_no_answer(tiny_checkpoint: Path, max_batch_tokens: int) -> None:
    speculative = NgramSpeculation(num_draft_tokens=4, max_ngram=3, min_ngram=1)
    prompts = ["O, O, O, O, O, O, O, O", *PROMPTS]
    answers, stats = [], []
    for config in (
        EngineConfig(max_batch_tokens=max_batch_tokens),
        EngineConfig(max_batch_tokens=max_batch_tokens, speculative=speculative, block_size=4),
    ):
        model = LLM(tiny_checkpoint, config=config)
        drawn = SamplingParams(seed=5, max_tokens=24, temperature=0.7, repetition_penalty=1.1, logprobs=2, n=2)
        greedy = SamplingParams(temperature=0.0, max_tokens=40, stop=("zz",))
        found = [*model.generate(prompts, greedy), *model.generate(prompts, drawn)]
        answers.append([(choice.token_ids, choice.text) for output in found for choice in output.choices])
        stats.append(model.engine.stats())
        assert all(len(choice.logprobs or ()) == len(choice.token_ids) for choice in found[-1].choices)
    assert answers[0] == answers[1]
    assert stats[0]["drafts_computed"] == 0
    assert 0 < stats[1]["drafts_accepted"] <= stats[1]["drafts_computed"]
    assert stats[1]["blocks_free"] == stats[1]["blocks_total"]
    with pytest.raises(ConfigError, match="`max_ngram` must be at least `min_ngram` 3, got 2"):
        NgramSpeculation(max_ngram=2, min_ngram=3)


@pytest.fixture(scope="module")
def other_draft(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with noise on its weights: it guesses right now and then."""
    directory = tmp_path_factory.mktemp("draft") / "model"
    shutil.copytree(tiny_checkpoint, directory)
    weights = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    noisy = {
        name: tensor + 0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights.items()
    }
    save_file(noisy, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


LIMITS = {
    "roomy": {},
    "chunked": {"max_batch_tokens": 5, "block_size": 4},
    "preempting": {"max_model_len": 96, "block_size": 8, "kv_cache_memory_bytes": 2 * 2 * 2 * 16 * 4 * 8 * 13},
}


@pytest.mark.long
@pytest.mark.parametrize("backend", ["kernels", "torch"])
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_a_draft_model_changes_no_answer(
    tiny_checkpoint: Path, other_draft: Path, limits: dict[str, int], backend: str
) -> None:
    drawn = SamplingParams(seed=5, max_tokens=24, temperature=0.7, repetition_penalty=1.1, logprobs=2, n=2)
    greedy = SamplingParams(temperature=0.0, max_tokens=30, stop=("zz",))
    # The draft's cache holds one request of the longest context: most find no room in it.
    small = 2 * 2 * 2 * 16 * 4 * 128 if not limits.get("max_model_len") else 2 * 2 * 2 * 16 * 4 * 96
    drafts = (
        None,
        DraftSpeculation(path=str(tiny_checkpoint), num_draft_tokens=3),
        DraftSpeculation(path=str(other_draft), num_draft_tokens=3),
        DraftSpeculation(path=str(other_draft), num_draft_tokens=3, kv_cache_memory_bytes=small),
    )
    answers, stats = [], []
    for draft in drafts:
        model = LLM(tiny_checkpoint, config=EngineConfig(**limits, backend=backend, speculative=draft))  # type: ignore[arg-type]
        found = [*model.generate(PROMPTS, greedy), *model.generate(PROMPTS, drawn)]
        answers.append([(choice.token_ids, choice.text) for output in found for choice in output.choices])
        stats.append(model.engine.stats())
        assert model.engine.draft is None if draft is None else model.engine.draft is not None
        assert stats[-1]["blocks_free"] == stats[-1]["blocks_total"]
    assert answers[1:] == answers[:1] * 3
    none, own, other, cramped = stats
    assert none["drafts_computed"] == 0
    assert own["drafts_accepted"] > other["drafts_accepted"] > 0
    assert other["drafts_computed"] > cramped["drafts_computed"] > 0


def test_a_model_drafting_for_itself_is_always_right(tiny_checkpoint: Path) -> None:
    draft = DraftSpeculation(path=str(tiny_checkpoint), num_draft_tokens=4)
    model = LLM(tiny_checkpoint, config=EngineConfig(speculative=draft))
    model.generate(PROMPTS[1], GREEDY)
    stats = model.engine.stats()
    # A token of the prompt's pass, then four guesses and one more each step: 1 + 3 * 5 + 4.
    assert (stats["drafts_computed"], stats["drafts_accepted"], stats["num_steps"]) == (15, 15, 5)


def test_a_draft_of_another_vocabulary_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    (tmp_path / "corpus.txt").write_text("".join(text * 9 for text in PROMPTS))
    BPETokenizer.train(tmp_path / "corpus.txt", vocab_size=270, special_tokens=["<|endoftext|>"]).save(other)
    config = EngineConfig(speculative=DraftSpeculation(path=str(other)))
    with pytest.raises(ConfigError, match=r"`speculative.path` must be a model with the same \d+ tokens, got 27\d"):
        load_engine(tiny_checkpoint, config=config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "dragon"}, "`speculative.method` must be one of ngram, draft, got 'dragon'"),
        ({"num_draft_tokens": 2}, "`speculative.method` must be one of ngram, draft, got None"),
        ({"method": "draft", "pth": "x"}, "unknown setting `speculative.pth`; did you mean `path`"),
        ({"method": "ngram", "path": "x"}, "unknown setting `speculative.path`"),
    ],
)
def test_settings_of_guesses_name_what_is_wrong(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_builtins({"speculative": values}, EngineConfig)
    assert isinstance(
        from_builtins({"speculative": {"method": "draft", "path": "x"}}, EngineConfig).speculative, DraftSpeculation
    )


def test_a_failing_draft_costs_its_guesses_and_no_answer(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = LLM(tiny_checkpoint).generate(PROMPTS, GREEDY)
    draft = DraftSpeculation(path=str(tiny_checkpoint))
    model = LLM(tiny_checkpoint, config=EngineConfig(speculative=draft, backend="torch"))
    assert model.engine.draft is not None
    monkeypatch.setattr(model.engine.draft.runner.model, "forward", _out_of_memory)
    assert [out.token_ids for out in model.generate(PROMPTS, GREEDY)] == [out.token_ids for out in expected]
    assert "the draft model failed" in caplog.text


def _out_of_memory(*_: object) -> Tensor:
    raise RuntimeError("out of memory")
