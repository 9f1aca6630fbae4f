"""The engine step by step, with a real small model."""

from pathlib import Path

import msgspec
import pytest
import torch

from llm import LLM, SamplingParams
from llm.checkpoint import load_model
from llm.errors import CapacityError, ConfigError, ContextLengthError, EngineError, InvalidArgumentError, QueueFullError
from llm.inference import Delta, EngineConfig, load_engine
from llm.models import ForwardContext, positions_of
from tests.unit.inference_samples import GREEDY, PROMPTS, FailsOnce, drain, drain_ids, greedy_by_full_forward


@pytest.mark.parametrize(
    "limits",
    [
        EngineConfig(),
        EngineConfig(max_batch_tokens=3, block_size=4),
        EngineConfig(block_size=1, max_running_requests=2),
        EngineConfig(max_model_len=80, block_size=8, kv_cache_memory_bytes=2 * 2 * 2 * 16 * 4 * 8 * 11),
    ],
    ids=["roomy", "chunked", "two at a time", "preempting"],
)
def test_batched_greedy_equals_one_by_one_full_forwards(tiny_checkpoint: Path, limits: EngineConfig) -> None:
    engine = load_engine(tiny_checkpoint, config=limits)
    prompts = [engine.tokenizer.encode(text) for text in PROMPTS]
    requests = [engine.add_request(prompt, GREEDY) for prompt in prompts]
    deltas = drain(engine)
    for request_id, prompt in zip(requests, prompts, strict=True):
        tokens = [token for delta in deltas[request_id] for token in delta.token_ids]
        assert tokens == greedy_by_full_forward(tiny_checkpoint, prompt, 20)
    if limits.kv_cache_memory_bytes:
        assert engine.stats()["num_preemptions"] > 0
    assert engine.stats()["blocks_free"] == engine.stats()["blocks_total"]


def test_seeded_draws_do_not_depend_on_batch_mates(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    params = SamplingParams(seed=5, max_tokens=24, temperature=0.9, top_p=0.95)
    alone = [model.generate(prompt, params) for prompt in PROMPTS]
    together = model.generate(PROMPTS, params)
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]
    assert [output.text for output in together] == [output.text for output in alone]
    assert model.generate(PROMPTS[0], params).text == alone[0].text
    assert model.generate(PROMPTS[0], SamplingParams(seed=6, max_tokens=24)).token_ids != alone[0].token_ids


def test_choices_equal_requests_with_their_choice_index(tiny_checkpoint: Path) -> None:
    engine = load_engine(
        tiny_checkpoint, config=EngineConfig(max_batch_tokens=32, block_size=8, max_running_requests=4)
    )
    prompt = engine.tokenizer.encode(PROMPTS[1])
    params = SamplingParams(seed=5, max_tokens=24, temperature=0.9, n=6)
    together = drain_ids(engine, engine.add_choices(prompt, params))
    one = msgspec.structs.replace(params, n=1)
    for choice, tokens in enumerate(together):
        alone = drain_ids(engine, [engine.add_request(prompt, one, choice_index=choice)])
        assert [tokens] == alone
    assert len(set(map(tuple, together))) == 6
    assert engine.stats()["blocks_copied"] >= 4
    with pytest.raises(InvalidArgumentError, match=r"`n` must be 1 here, got 6\nhint: `add_choices`"):
        engine.add_request(prompt, params)


@pytest.mark.parametrize("max_batch_tokens", [7, 2048])
def test_a_prefix_cache_changes_no_token(tiny_checkpoint: Path, max_batch_tokens: int) -> None:
    params = SamplingParams(seed=2, max_tokens=20, ignore_eos=True)
    turns = [PROMPTS[3] + "And", PROMPTS[3] + "And then", PROMPTS[3] + "Or"]
    found = []
    for enabled in (False, True):
        config = EngineConfig(enable_prefix_caching=enabled, block_size=4, max_batch_tokens=max_batch_tokens)
        model = LLM(tiny_checkpoint, config=config)
        outputs = [model.generate(turn, params) for turn in turns]
        last = model.tokenizer.encode(turns[-1]) + list(outputs[-1].token_ids)
        request_id = model.engine.add_request(last, params)
        found.append([*(output.token_ids for output in outputs), drain_ids(model.engine, [request_id])])
        hits = model.engine.stats()["prefix_hit_tokens"]
        assert hits >= 3 * (len(model.tokenizer.encode(turns[0])) - 4) if enabled else hits == 0
    assert found[0] == found[1]


@pytest.mark.parametrize("max_batch_tokens", [5, 2048])
def test_prompt_logprobs_equal_a_full_forwards(tiny_checkpoint: Path, max_batch_tokens: int) -> None:
    model = LLM(tiny_checkpoint, config=EngineConfig(max_batch_tokens=max_batch_tokens, block_size=4))
    model.generate(PROMPTS[1], GREEDY)  # fills the prefix cache, which such a request must not read
    output = model.generate(PROMPTS[1], SamplingParams(max_tokens=3, prompt_logprobs=2, n=2, seed=1))
    ids = torch.tensor(model.tokenizer.encode(PROMPTS[1]))
    with torch.no_grad():
        logits = load_model(tiny_checkpoint)(ids, positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
    wanted = logits.log_softmax(-1)[:-1]
    assert output.prompt_logprobs is not None
    assert [entry.token_id for entry in output.prompt_logprobs] == ids[1:].tolist()
    for row, entry in zip(wanted, output.prompt_logprobs, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
        assert [token for token, _ in entry.top] == row.topk(2).indices.tolist()
    assert output.choices[1].prompt_logprobs is None
    assert model.generate(PROMPTS[1], GREEDY).prompt_logprobs is None


def test_a_better_priority_overtakes(tiny_checkpoint: Path) -> None:
    engine = load_engine(tiny_checkpoint, config=EngineConfig(max_running_requests=1))
    late = engine.add_request([1, 2], GREEDY, priority=1)
    engine.step()
    first = engine.add_request([1, 3], GREEDY)
    order = []
    while engine.has_unfinished():
        order += [request for request, delta in engine.step() if isinstance(delta, Delta) and delta.finish_reason]
    assert order == [first, late]


def test_the_queue_is_bounded_in_tokens(tiny_checkpoint: Path) -> None:
    engine = load_engine(tiny_checkpoint, config=EngineConfig(max_waiting_tokens=5))
    engine.add_request([1] * 4, GREEDY)
    with pytest.raises(QueueFullError, match="4 tokens wait, with 2 more they would exceed 5"):
        engine.add_request([1] * 2, GREEDY)


def test_requests_that_cannot_be_served_say_why(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint, config=EngineConfig(max_waiting_requests=2))
    for params, error, message in (
        (SamplingParams(max_tokens=500), ContextLengthError, "the context is 128 tokens, got 3 in the prompt and 500"),
        (SamplingParams(top_p=1.5), ConfigError, "`top_p` must be `float` <= 1.0, got 1.5"),
        (SamplingParams(n=129), ConfigError, "`n` must be `int` <= 128, got 129"),
        (SamplingParams(temperature=-1.0), ConfigError, "`temperature` must be `float` >= 0.0, got -1.0"),
    ):
        with pytest.raises(error, match=message):
            model.generate("To be", params)
    with pytest.raises(ContextLengthError, match="200 in the prompt and 1"):
        model.engine.add_request([1] * 200, SamplingParams())
    with pytest.raises(InvalidArgumentError, match="prompt"):
        model.generate("", GREEDY)
    for _ in range(2):
        model.engine.add_request([1], GREEDY)
    with pytest.raises(QueueFullError, match="2 requests wait, at most 2 may"):
        model.engine.add_request([1], GREEDY)
    with pytest.raises(ConfigError, match="`max_model_len` must be at most the model's 128, got 500"):
        LLM(tiny_checkpoint, config=EngineConfig(max_model_len=500))
    with pytest.raises(CapacityError, match=r"needs .* bytes for one request of the longest context, got 10"):
        LLM(tiny_checkpoint, config=EngineConfig(kv_cache_memory_bytes=10))


def test_a_failed_step_fails_its_requests_and_the_engine_goes_on(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    wanted = model.generate("To be", GREEDY)
    model.engine.runner = FailsOnce(model.engine.runner)
    with pytest.raises(EngineError, match="the model failed in this request's step: out of memory"):
        model.generate("To be", GREEDY)
    assert model.generate("To be", GREEDY) == wanted
    assert model.engine.stats()["blocks_free"] == model.engine.stats()["blocks_total"]


def test_a_failed_step_fails_all_choices_of_its_prompts(tiny_checkpoint: Path) -> None:
    engine = load_engine(tiny_checkpoint, config=EngineConfig(max_batch_tokens=2))
    engine.runner = FailsOnce(engine.runner)
    ids = engine.add_choices([1, 2, 3, 4, 5], SamplingParams(n=3, max_tokens=4))
    assert engine.step() == []
    failed = engine.step()
    assert [request_id for request_id, _ in failed] == list(ids)
    assert all(isinstance(event, EngineError) for _, event in failed)
    assert not engine.has_unfinished()


def test_the_first_delta_tells_when_the_request_left_the_queue(tiny_checkpoint: Path) -> None:
    engine = load_engine(tiny_checkpoint, config=EngineConfig(max_running_requests=1))
    prompt = engine.tokenizer.encode(PROMPTS[1])
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    ids = [engine.add_request(prompt, params) for _ in range(3)]
    assert engine.abort(ids.pop())
    deltas = drain(engine)
    (first, *others), (waited, *more) = ([delta.scheduled_at for delta in deltas[request_id]] for request_id in ids)
    assert others == more == [None] * 3
    assert first is not None
    assert waited is not None
    assert waited > first
