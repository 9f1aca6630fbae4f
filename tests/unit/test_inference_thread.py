"""The engine's thread as asyncio sees it, with a real small model."""

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm import LLM, SamplingParams
from llm.errors import ContextLengthError, EngineError, InvalidArgumentError
from llm.inference import AsyncEngine, EngineConfig, Prompt, Session, load_async_engine, load_engine
from llm.settings.structured import StructuredOutputs
from tests.unit.inference_samples import GREEDY, PROMPTS, FailsOnce, drain_ids

LONG = SamplingParams(max_tokens=120, ignore_eos=True)


def prompt_of(params: SamplingParams, token_ids: Sequence[int] = (1, 2)) -> Prompt:
    return Prompt(token_ids=list(token_ids), params=params)


async def collect(engine: AsyncEngine, *prompts: Prompt) -> list[list[int]]:
    """The tokens of each choice."""
    found: list[list[int]] = [[] for prompt in prompts for _ in range(prompt.params.n)]
    async for deltas in engine.generate(prompts):
        assert deltas, "nobody is woken for nothing"
        for choice, delta in deltas:
            found[choice] += delta.token_ids
    return found


def test_async_requests_run_together_and_equal_the_sync_ones(tiny_checkpoint: Path) -> None:
    sync = LLM(tiny_checkpoint)
    params = SamplingParams(seed=2, max_tokens=30)
    wanted = [list(output.token_ids) for output in sync.generate(PROMPTS, params)]
    engine = load_async_engine(tiny_checkpoint)
    engine.start()

    prompts = [prompt_of(params, sync.tokenizer.encode(text)) for text in PROMPTS]

    async def ask_all() -> tuple[list[list[int]], list[list[list[int]]]]:
        together = await collect(engine, *prompts)
        return together, await asyncio.gather(*(collect(engine, prompt) for prompt in prompts))

    on_one_stream, on_their_own = asyncio.run(ask_all())
    assert on_one_stream == wanted
    assert [tokens for [tokens] in on_their_own] == wanted
    engine.shutdown()
    assert not engine.is_healthy


def test_async_choices_come_with_their_index(tiny_checkpoint: Path) -> None:
    engine = load_async_engine(tiny_checkpoint)
    engine.start()
    params = SamplingParams(seed=2, max_tokens=10, n=3, ignore_eos=True)

    async def ask() -> list[list[int]]:
        found = await collect(engine, prompt_of(params), prompt_of(GREEDY))
        with pytest.raises(InvalidArgumentError, match="`num_choices` must be at least 1, got 0"):
            await collect(engine, prompt_of(GREEDY), prompt_of(SamplingParams(n=0)))
        stream = engine.generate([prompt_of(SamplingParams(n=3, max_tokens=100, ignore_eos=True))])
        await anext(stream)
        await stream.aclose()
        assert [found.pop()] == await collect(engine, prompt_of(GREEDY))
        return found

    choices = asyncio.run(ask())
    engine.shutdown()
    sync = load_engine(tiny_checkpoint)
    assert choices == drain_ids(sync, sync.add_choices([1, 2], params))
    assert engine.stats()["blocks_free"] == engine.stats()["blocks_total"]


def test_the_engines_thread_compiles_no_grammar(tiny_checkpoint: Path) -> None:
    """More grammars wait than the compiler keeps, so a second look for one of them would compile it again."""
    engine = load_async_engine(tiny_checkpoint, config=EngineConfig(max_running_requests=2))
    texts = [f"{number:03}" for number in range(200)]
    forms = [SamplingParams(max_tokens=8, structured_outputs=StructuredOutputs(choice=(text,))) for text in texts]
    compiled = engine.session.engine.compile_grammar
    prompts = [Prompt(token_ids=[1, 2], params=form, grammar=compiled(form)) for form in forms]
    assert engine.stats()["grammars_compiled"] == 200
    engine.start()

    async def ask() -> list[list[int]]:
        with pytest.raises(InvalidArgumentError, match="`structured_outputs` needs its compiled grammar"):
            await collect(engine, prompt_of(forms[0]))
        return await collect(engine, *prompts)

    answers = asyncio.run(ask())
    assert [engine.session.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers] == texts
    assert engine.stats()["grammars_compiled"] == 200
    engine.shutdown()


def test_ticks_come_while_nothing_else_does(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = load_engine(tiny_checkpoint)
    run, gate = inner.runner.run, threading.Event()
    monkeypatch.setattr(inner.runner, "run", lambda plan: (gate.wait(), run(plan))[1])
    engine = AsyncEngine(Session(inner))
    engine.start()

    async def ask() -> list[int]:
        arrivals = engine.generate([prompt_of(GREEDY)], tick_s=0.01)
        assert [await anext(arrivals), await anext(arrivals)] == [[], []]
        gate.set()
        return [
            token for deltas in [found async for found in arrivals] for _, delta in deltas for token in delta.token_ids
        ]

    assert len(asyncio.run(ask())) == 20
    engine.shutdown()


def test_async_errors_come_before_the_first_delta_and_cancelling_frees_the_slot(tiny_checkpoint: Path) -> None:
    engine = load_async_engine(tiny_checkpoint, config=EngineConfig(max_running_requests=1))
    engine.start()

    async def scenario() -> None:
        with pytest.raises(ContextLengthError):
            await collect(engine, prompt_of(LONG), prompt_of(SamplingParams(max_tokens=1000)))
        assert engine.stats()["num_waiting"] == engine.stats()["num_running"] == 0, "all prompts or none"
        stream = engine.generate([prompt_of(LONG)])
        await anext(stream)
        await stream.aclose()
        # Only one request runs at a time, so this one answers only once the closed one's slot is free.
        assert len((await collect(engine, prompt_of(GREEDY)))[0]) == 20

    asyncio.run(scenario())
    engine.shutdown()
    assert engine.stats()["blocks_free"] == engine.stats()["blocks_total"]


def test_an_error_of_one_choice_ends_them_all(tiny_checkpoint: Path) -> None:
    inner = load_engine(tiny_checkpoint, config=EngineConfig(max_batch_tokens=4))
    engine = AsyncEngine(Session(inner))
    engine.start()
    inner.runner = FailsOnce(inner.runner)

    async def scenario() -> None:
        with pytest.raises(EngineError, match="out of memory"):
            await collect(engine, prompt_of(LONG), prompt_of(LONG, [1] * 8))
        assert len((await collect(engine, prompt_of(GREEDY)))[0]) == 20

    asyncio.run(scenario())
    engine.shutdown()
    assert engine.stats()["blocks_free"] == engine.stats()["blocks_total"]


def test_shutdown_fails_what_still_runs(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = load_engine(tiny_checkpoint)
    run = inner.runner.run
    # So that the answer isn't over before the shutdown comes.
    monkeypatch.setattr(inner.runner, "run", lambda plan: (time.sleep(0.01), run(plan))[1])
    engine = AsyncEngine(Session(inner))
    engine.start()

    async def scenario() -> None:
        stream = engine.generate([prompt_of(LONG)])
        await anext(stream)
        await asyncio.to_thread(engine.shutdown)
        with pytest.raises(EngineError, match="shut down"):
            async for _ in stream:
                pass
        with pytest.raises(EngineError, match="not running"):
            await collect(engine, prompt_of(GREEDY))

    asyncio.run(scenario())
