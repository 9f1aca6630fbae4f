"""`LLM` as a blocking client of a session, with a real small model."""

from pathlib import Path

import msgspec
import pytest
import torch

from llm import LLM, SamplingParams
from llm.checkpoint import load_model
from llm.errors import InvalidArgumentError
from llm.inference import EngineConfig
from llm.models import ForwardContext, positions_of
from tests.unit.inference_samples import GREEDY, PROMPTS


def test_generate_gives_all_choices_of_each_prompt(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    outputs = model.generate(PROMPTS[:2], SamplingParams(seed=5, max_tokens=8, n=3))
    for output, prompt in zip(outputs, PROMPTS[:2], strict=True):
        assert output.choices == (output, *output.others)
        assert len({choice.text for choice in output.choices}) == len(output.choices) == 3
        alone = model.generate(prompt, SamplingParams(seed=5, max_tokens=8))
        assert (output.text, output.token_ids) == (alone.text, alone.token_ids)
        assert output.usage.total_tokens == alone.usage.total_tokens
        assert alone.choices == (alone,)
    assert model.engine.stats()["blocks_free"] == model.engine.stats()["blocks_total"]
    with pytest.raises(InvalidArgumentError, match="`n` must be 1 here"):
        next(model.stream("To be", SamplingParams(n=2)))


def test_stream_concatenates_to_generate_even_when_interleaved(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    params = SamplingParams(seed=1, max_tokens=30)
    whole = model.generate("To be", params)
    stream = model.stream("To be", params)
    parts = [next(stream).text]
    other = model.generate("To be", params)
    parts += [delta.text for delta in stream]
    assert "".join(parts) == whole.text == other.text


def test_a_closed_stream_gives_its_blocks_back(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    stream = model.stream("To be", SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    assert model.engine.stats()["num_running"] == 1
    stream.close()
    assert model.engine.stats()["num_running"] == 0
    assert model.engine.stats()["blocks_free"] == model.engine.stats()["blocks_total"]


def test_outputs_carry_text_tokens_reason_logprobs_and_usage(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    prompt = model.tokenizer.encode("To be")
    output = model.generate("To be", SamplingParams(max_tokens=5, temperature=0.0, logprobs=3, ignore_eos=True))
    assert output.finish_reason == "length"
    assert output.usage.prompt_tokens == len(prompt)
    assert output.usage.completion_tokens == len(output.token_ids) == 5
    assert output.usage.total_tokens == len(prompt) + 5
    assert output.text == model.tokenizer.decode(output.token_ids)
    ids = torch.tensor([*prompt, *output.token_ids])
    with torch.no_grad():
        logits = load_model(tiny_checkpoint)(ids, positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
    wanted = logits.log_softmax(-1)
    assert output.logprobs is not None
    for idx, entry in enumerate(output.logprobs):
        row = wanted[len(prompt) - 1 + idx]
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
        assert [token for token, _ in entry.top] == row.topk(3).indices.tolist()
        assert entry.top[0] == (entry.token_id, entry.logprob)


def test_stop_strings_end_the_text_before_them(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    free = model.generate("To be", SamplingParams(seed=3, max_tokens=40, ignore_eos=True)).text
    stop = free[10:13]
    stopped = model.generate("To be", SamplingParams(seed=3, max_tokens=40, ignore_eos=True, stop=(stop,)))
    assert stopped.text == free[: free.index(stop)]
    assert stopped.finish_reason == "stop"


def test_chat_renders_the_template_and_stops_at_its_end(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    params = SamplingParams(seed=3, max_tokens=60)
    answer = model.chat([{"role": "user", "content": "What news?"}], params)
    prompt = "ROMEO:\nWhat news?\n\nJULIET:\n"
    raw = model.generate(prompt, SamplingParams(seed=3, max_tokens=60, stop=("\n\n",)))
    cached = raw.usage.prompt_tokens_details.cached_tokens
    assert cached == len(model.tokenizer.encode(prompt)) // 16 * 16
    assert msgspec.structs.replace(raw, usage=answer.usage) == answer


def test_more_prompts_than_the_queue_holds_are_taken_in_turn(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint, config=EngineConfig(max_waiting_requests=1, max_running_requests=2))
    outputs = model.generate(PROMPTS * 3, GREEDY)
    assert [output.token_ids for output in outputs[:5]] == [output.token_ids for output in outputs[10:]]
    assert all(output.usage.completion_tokens == 20 for output in outputs)
