"""The engine and its thread, with a real small model."""

import asyncio
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm import LLM, SamplingParams
from llm.checkpoint import load_model
from llm.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    ContextLengthError,
    EngineError,
    InvalidArgumentError,
    QueueFullError,
)
from llm.inference import (
    AsyncEngine,
    Delta,
    DraftSpeculation,
    Engine,
    EngineConfig,
    NgramSpeculation,
    load_async_engine,
    load_engine,
)
from llm.models import ForwardContext, positions_of
from llm.settings.merge import from_builtins
from llm.tokenization import BPETokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


def greedy_by_full_forward(checkpoint: Path, prompt: list[int], steps: int) -> list[int]:
    """The obvious way: the whole sequence anew for each token."""
    model = load_model(checkpoint)
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            logits = model(torch.tensor(ids), positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
            ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :]


def drain(engine: Engine) -> dict[int, list[Delta]]:
    found: dict[int, list[Delta]] = {}
    while engine.has_unfinished():
        for request_id, event in engine.step():
            assert isinstance(event, Delta), event
            found.setdefault(request_id, []).append(event)
    engine.core.check_integrity()
    return found


PROMPTS = ["To be", "First Citizen:\nBefore we proceed any further", "O", "ROMEO:\n" * 8, "My lord, the king is"]


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


def drain_ids(engine: Engine, ids: Sequence[int]) -> list[list[int]]:
    deltas = drain(engine)
    return [[token for delta in deltas[request_id] for token in delta.token_ids] for request_id in ids]


def test_generate_gives_all_choices_of_each_prompt(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint)
    outputs = model.generate(PROMPTS[:2], SamplingParams(seed=5, max_tokens=8, n=3))
    for output, prompt in zip(outputs, PROMPTS[:2], strict=True):
        assert output.choices == (output, *output.others)
        assert len({choice.text for choice in output.choices}) == len(output.choices) == 3
        alone = model.generate(prompt, SamplingParams(seed=5, max_tokens=8))
        assert (output.text, output.usage) == (alone.text, alone.usage)
        assert alone.choices == (alone,)
    assert model.engine.stats()["blocks_free"] == model.engine.stats()["blocks_total"]
    with pytest.raises(InvalidArgumentError, match="`n` must be 1 here"):
        next(model.stream("To be", SamplingParams(n=2)))


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
    assert answer == raw


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


def test_more_prompts_than_the_queue_holds_are_taken_in_turn(tiny_checkpoint: Path) -> None:
    model = LLM(tiny_checkpoint, config=EngineConfig(max_waiting_requests=1, max_running_requests=2))
    outputs = model.generate(PROMPTS * 3, GREEDY)
    assert [output.token_ids for output in outputs[:5]] == [output.token_ids for output in outputs[10:]]
    assert all(output.usage.completion_tokens == 20 for output in outputs)


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_checkpoint: Path, tmp_path: Path, corpus_text: str) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(tiny_checkpoint, mixed)
    BPETokenizer.train_from_iterator([corpus_text], vocab_size=500, progress=False).save(mixed)
    with pytest.raises(CheckpointError, match="must have at most the model's 384 entries, got 500"):
        LLM(mixed)


def test_a_truncated_or_missing_checkpoint_is_one_clear_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(tiny_checkpoint, torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(
        CheckpointError, match=r"model.safetensors is truncated or not a safetensors file \(\d+ bytes\)"
    ):
        LLM(torn)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        LLM(torn)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        LLM(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds neither a config\.json nor a complete"):
        LLM(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_can_be_chosen(tiny_checkpoint: Path, dtype: str) -> None:
    model = LLM(tiny_checkpoint, dtype)
    output = model.generate("To be", GREEDY)
    assert len(output.token_ids) == 20
    assert str(model.engine.runner.model.lm_head.weight.dtype) == f"torch.{dtype}"
    cosine, _ = model.engine.runner.model.positions.rotation(torch.arange(3))
    assert cosine.dtype == torch.float32


def test_an_unknown_dtype_lists_the_valid_ones(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="`dtype` must be one of auto, float32, bfloat16, float16, got 'int3'"):
        LLM(tiny_checkpoint, "int3")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="`device` is 'cuda:1', but PyTorch sees 0 CUDA devices"):
        LLM(tiny_checkpoint, device="cuda:1")
    with pytest.raises(ConfigError, match=r"`device` must be auto, cpu or cuda\[:N\], got 'gpu'"):
        LLM(tiny_checkpoint, device="gpu")


class FailsOnce:
    """The real runner, but for one step that fails as a device out of memory would."""

    def __init__(self, runner: object) -> None:
        self.runner = runner
        self.calls = 0

    def run(self, plan: object) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("out of memory")
        return self.runner.run(plan)


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


async def collect(engine: AsyncEngine, prompt: list[int], params: SamplingParams) -> list[int]:
    return [token async for delta in engine.generate(prompt, params) for token in delta.token_ids]


def test_async_requests_run_together_and_equal_the_sync_ones(tiny_checkpoint: Path) -> None:
    sync = LLM(tiny_checkpoint)
    params = SamplingParams(seed=2, max_tokens=30)
    wanted = [list(output.token_ids) for output in sync.generate(PROMPTS, params)]
    engine = load_async_engine(tiny_checkpoint)
    engine.start()

    async def ask_all() -> list[list[int]]:
        return await asyncio.gather(*(collect(engine, sync.tokenizer.encode(text), params) for text in PROMPTS))

    assert asyncio.run(ask_all()) == wanted
    engine.shutdown()
    assert not engine.is_healthy


def test_async_choices_come_with_their_index(tiny_checkpoint: Path) -> None:
    engine = load_async_engine(tiny_checkpoint)
    engine.start()
    params = SamplingParams(seed=2, max_tokens=10, n=3, ignore_eos=True)

    async def ask() -> list[list[int]]:
        found: list[list[int]] = [[], [], []]
        async for choice, delta in engine.generate_choices([1, 2], params):
            found[choice] += delta.token_ids
        with pytest.raises(InvalidArgumentError, match="`num_choices` must be at least 1, got 0"):
            await anext(engine.generate_choices([1, 2], SamplingParams(n=0)))
        stream = engine.generate_choices([1, 2], SamplingParams(n=3, max_tokens=100, ignore_eos=True))
        await anext(stream)
        await stream.aclose()
        assert len(await collect(engine, [1, 2], GREEDY)) == 20
        return found

    choices = asyncio.run(ask())
    engine.shutdown()
    sync = load_engine(tiny_checkpoint)
    assert choices == drain_ids(sync, sync.add_choices([1, 2], params))
    assert engine.stats()["blocks_free"] == engine.stats()["blocks_total"]


def test_async_errors_come_before_the_first_delta_and_cancelling_frees_the_slot(tiny_checkpoint: Path) -> None:
    engine = load_async_engine(tiny_checkpoint, config=EngineConfig(max_running_requests=1))
    engine.start()

    async def scenario() -> None:
        with pytest.raises(ContextLengthError):
            await collect(engine, [1, 2], SamplingParams(max_tokens=1000))
        stream = engine.generate([1, 2], SamplingParams(max_tokens=120, ignore_eos=True))
        await anext(stream)
        await stream.aclose()
        # Only one request runs at a time, so this one answers only once the closed one's slot is free.
        assert len(await collect(engine, [1, 2], GREEDY)) == 20

    asyncio.run(scenario())
    engine.shutdown()
    assert engine.stats()["blocks_free"] == engine.stats()["blocks_total"]


def test_shutdown_fails_what_still_runs(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = load_engine(tiny_checkpoint)
    run = inner.runner.run
    # So that the answer isn't over before the shutdown comes.
    monkeypatch.setattr(inner.runner, "run", lambda plan: (time.sleep(0.01), run(plan))[1])
    engine = AsyncEngine(inner)
    engine.start()

    async def scenario() -> None:
        stream = engine.generate([1, 2], SamplingParams(max_tokens=120, ignore_eos=True))
        await anext(stream)
        await asyncio.to_thread(engine.shutdown)
        with pytest.raises(EngineError, match="shut down"):
            async for _ in stream:
                pass
        with pytest.raises(EngineError, match="not running"):
            await collect(engine, [1, 2], GREEDY)

    asyncio.run(scenario())
