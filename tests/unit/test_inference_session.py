"""`LLM` as a blocking client of a session, with a real small model."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from llm import LLM, SamplingParams
from llm.checkpoint import load_model
from llm.errors import ChatTemplateError, InvalidArgumentError, LLMError
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


@pytest.mark.parametrize(
    ("prompts", "got"),
    [
        ([1, 2, 3], "got 1 in the list"),
        (5, "got 5"),
        (None, "got None"),
        (b"To be", "got b'To be'"),
        ({"prompt": "To"}, "got {"),
    ],
)
def test_prompts_of_another_form_are_refused(tiny_checkpoint: Path, prompts: Any, got: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        LLM(tiny_checkpoint).generate(prompts, GREEDY)
    words = f"`prompts` must be a text, or a list of texts or of lists of token ids, {got}"
    assert str(caught.value).startswith(words)
    assert str(caught.value).endswith("\nhint: the ids of one prompt are a list in the list: `[[1, 2, 3]]`")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hi", "a conversation must be a list of messages, got 'hi'\nhint: a question is `"),
        ({"role": "user", "content": "hi"}, "a conversation must be a list of messages, got {'role': 'user',"),
        (["hi"], "messages must be mappings with a `role`, got 'hi' at index 0"),
    ],
)
def test_conversations_of_another_form_are_refused(tiny_checkpoint: Path, messages: Any, words: str) -> None:
    with pytest.raises(ChatTemplateError) as caught:
        LLM(tiny_checkpoint).chat(messages, GREEDY)
    assert str(caught.value).startswith(words)


def test_params_take_numbers_of_numpy_and_nothing_but_params(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    params = SamplingParams(max_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.int32(1))
    same = SamplingParams(max_tokens=3, temperature=0.5, seed=1)
    assert model.generate("To be", params).token_ids == model.generate("To be", same).token_ids
    for wrong, message in (
        ({"max_tokens": 3}, r"`params` must be `SamplingParams`, got {'max_tokens': 3}"),
        (SamplingParams(top_k=np.int64(-1)), "`top_k` must be `int` >= 0, got -1"),
        (SamplingParams(temperature=1j), "a setting must be a number, text, list or table, got 1j"),
    ):
        with pytest.raises(LLMError, match=message):
            model.generate("To be", wrong)


def test_more_prompts_than_the_queue_holds_are_taken_in_turn(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint, config=EngineConfig(max_waiting_requests=1, max_running_requests=2))
    outputs = model.generate(PROMPTS * 3, GREEDY)
    assert [output.token_ids for output in outputs[:5]] == [output.token_ids for output in outputs[10:]]
    assert all(output.usage.completion_tokens == 20 for output in outputs)
