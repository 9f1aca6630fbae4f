"""Embeddings, scores and many prompts at once, with a real small model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llm import LLM, SamplingParams
from llm.checkpoint import load_model
from llm.errors import ContextLengthError, InvalidArgumentError
from llm.models import ForwardContext, logprobs, positions_of

TEXTS = ["To be", "ROMEO:\nBut soft, what light", "O", "My lord, the king is"]


def hidden_states(checkpoint: Path, ids: list[int]) -> torch.Tensor:
    model = load_model(checkpoint)
    with torch.no_grad():
        found: torch.Tensor = model.norm(
            model.hidden_states(torch.tensor(ids), positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
        )
    return found


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_pooled_hidden_states_of_unit_length(tiny_checkpoint: Path, pooling: str) -> None:
    model = LLM(tiny_checkpoint)
    found = model.embed(TEXTS, pooling=pooling)  # type: ignore[arg-type]
    assert found.dtype == np.float32
    for vector, text in zip(found, TEXTS, strict=True):
        states = hidden_states(tiny_checkpoint, model.tokenizer.encode(text))
        wanted = states.mean(0) if pooling == "mean" else states[-1]
        np.testing.assert_allclose(vector, (wanted / wanted.norm()).numpy(), atol=2e-6)


def test_scores_are_the_logprobs_of_a_forward_pass(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 3 * 384)
    model = LLM(tiny_checkpoint)
    found = model.score(TEXTS, [" or not to be, that is", " breaks?", "", " dead."])
    for score, prompt in zip(found, TEXTS, strict=True):
        prompt_ids = model.tokenizer.encode(prompt)
        ids = [*prompt_ids, *score.token_ids]
        head = load_model(tiny_checkpoint).lm_head
        with torch.no_grad():
            expected = head(hidden_states(tiny_checkpoint, ids)).log_softmax(-1)
        places = range(len(prompt_ids) - 1, len(ids) - 1)
        wanted = [expected[place, ids[place + 1]].item() for place in places]
        assert score.token_logprobs == pytest.approx(wanted, abs=1e-5)
        assert score.logprob == pytest.approx(sum(wanted), abs=1e-4)
    assert found[2].token_ids == ()


def test_batches_change_nothing(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LLM(tiny_checkpoint)
    together = model.embed(TEXTS * 3)
    monkeypatch.setattr("llm.api.model.SCORED_TOKENS", 5)
    np.testing.assert_allclose(model.embed(TEXTS * 3), together, atol=1e-6)
    assert model.embed([]).shape == (0, together.shape[1])


def test_what_cannot_be_scored_is_refused(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    with pytest.raises(InvalidArgumentError, match="`pooling` must be 'mean' or 'last', got 'max'"):
        model.embed(TEXTS, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="at least one token, got none"):
        model.embed([""])
    with pytest.raises(InvalidArgumentError, match="a prompt must hold at least one token"):
        model.score([""], ["x"])
    with pytest.raises(InvalidArgumentError, match="one for each of 2 prompts, got 1"):
        model.score(["x", "y"], ["z"])
    with pytest.raises(ContextLengthError, match="the context is"):
        model.embed(["x " * 5000])


def test_each_prompt_may_have_its_own_params_and_be_ids(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = LLM(tiny_checkpoint)
    params = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in range(1, 21)]
    prompts = [model.tokenizer.encode("To be")] * 20
    outputs = model.generate(prompts, params, progress=True)
    assert [len(output.token_ids) for output in outputs] == list(range(1, 21))
    assert outputs[-1] == model.generate("To be", params[-1])
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "tokens/s" in shown
    model.generate(prompts, params)
    assert capsys.readouterr().err == ""  # not a terminal
    with pytest.raises(InvalidArgumentError, match="one for each of 20 prompts, got 19"):
        model.generate(prompts, params[1:])
