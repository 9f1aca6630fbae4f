"""The two endpoints that generate: what differs between chat and plain text, and the one way both are answered."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec

from llm.inference import AsyncEngine, Delta
from llm.serving.answers import Answer, ChatAnswer, TextAnswer
from llm.serving.generation import Prompt, Tally, chat_prompts, completion_prompts, merged_deltas
from llm.serving.http import Exchange
from llm.serving.metrics import ServerMetrics
from llm.serving.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What tells one generating endpoint from the other."""

    request_type: type[GenerationRequest]
    prompt_param: str
    prompts: Callable[[Any, AsyncEngine], list[Prompt]]
    answer: type[Answer]


CHAT = Endpoint(request_type=ChatCompletionRequest, prompt_param="messages", prompts=chat_prompts, answer=ChatAnswer)
COMPLETIONS = Endpoint(
    request_type=CompletionRequest, prompt_param="prompt", prompts=completion_prompts, answer=TextAnswer
)


async def generate(
    endpoint: Endpoint, request: GenerationRequest, exchange: Exchange, engine: AsyncEngine, metrics: ServerMetrics
) -> None:
    """Answers one request; leaving early, by error or by cancellation, gives its blocks back.

    Raises:
        APIError: The prompt can't be used.
        LLMError: The engine refused the request, or failed on the way.
    """
    prompts = await asyncio.to_thread(endpoint.prompts, request, engine)  # a long prompt must not hold up the others
    answer = endpoint.answer(request, engine.tokenizer)
    tally = Tally(prompts)
    try:
        async with aclosing(merged_deltas(prompts, engine)) as deltas:
            counted = _counted(deltas, tally, exchange, metrics)
            if request.stream:
                await _stream(request, answer, exchange, counted, tally)
                return
            async for _ in counted:
                pass
        await exchange.send_json(answer.whole(tally))
    finally:
        metrics.count_tokens(tally.usage)


async def _counted(
    deltas: AsyncIterator[tuple[int, Delta]], tally: Tally, exchange: Exchange, metrics: ServerMetrics
) -> AsyncIterator[tuple[int, Delta]]:
    """Passes deltas on, keeping tally and metrics."""
    async for index, delta in deltas:
        if exchange.usage is None:
            metrics.first_token_s.observe(time.perf_counter() - exchange.started_at)
        tally.add(index, delta)
        exchange.usage = tally.usage
        yield index, delta


async def _stream(
    request: GenerationRequest,
    answer: Answer,
    exchange: Exchange,
    deltas: AsyncIterator[tuple[int, Delta]],
    tally: Tally,
) -> None:
    """Sends events as deltas come; nothing is sent before the first, so that a refusal keeps its own status."""
    opened: set[int] = set()
    async for index, delta in deltas:
        if exchange.status is None:
            await exchange.start_stream()
        opening = None if index in opened else answer.opening(index)
        opened.add(index)
        if opening is not None:
            await exchange.send_event(opening)
        if delta.text or delta.logprobs:
            await exchange.send_event(answer.chunk(index, delta.text, logprobs=delta.logprobs))
        if delta.finish_reason is not None:
            await exchange.send_event(answer.chunk(index, "", delta.finish_reason))
    if request.include_usage:
        await exchange.send_event(answer.usage_chunk(tally.usage))
    await exchange.finish_stream()
