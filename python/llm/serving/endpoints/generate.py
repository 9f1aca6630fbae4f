"""The chat and completion endpoints: their differences as data, and the one function that answers both."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec

from llm.inference import AsyncEngine, Collector, Prompt, Session
from llm.serving.answers.base import Answer
from llm.serving.answers.chat import ChatAnswer
from llm.serving.answers.text import TextAnswer
from llm.serving.http import Exchange
from llm.serving.metrics import Meter, ServerMetrics
from llm.serving.prompts import chat_prompts, completion_prompts
from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.common import GenerationRequest
from llm.serving.protocol.completions import CompletionRequest
from llm.serving.services import Services


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The parts in which one generating endpoint differs from the other."""

    request_type: type[GenerationRequest]
    prompt_param: str
    prompts: Callable[[Any, Session], list[Prompt]]
    answer: type[Answer]


CHAT = Endpoint(request_type=ChatCompletionRequest, prompt_param="messages", prompts=chat_prompts, answer=ChatAnswer)
COMPLETIONS = Endpoint(
    request_type=CompletionRequest, prompt_param="prompt", prompts=completion_prompts, answer=TextAnswer
)


async def handle(endpoint: Endpoint, services: Services, exchange: Exchange) -> None:
    """Handles `POST /v1/chat/completions` and `POST /v1/completions`."""
    request = await services.read(exchange, endpoint.request_type)
    work = generate(endpoint, request, exchange, services.engine.ready(), services.metrics)
    await services.run(exchange, work, prompt_param=endpoint.prompt_param)


async def generate(
    endpoint: Endpoint, request: GenerationRequest, exchange: Exchange, engine: AsyncEngine, metrics: ServerMetrics
) -> None:
    """Answers one request; its blocks are freed on an error, a cancellation or a disconnect.

    A stream starts with the first deltas, so a rejected request still gets its own HTTP status.

    Raises:
        APIError: The prompt is invalid.
        LLMError: The engine rejected the request or failed while answering it.
    """
    # Runs in a separate thread, because encoding a long prompt must not delay other requests.
    prompts = await asyncio.to_thread(endpoint.prompts, request, engine.session)
    prompts = engine.session.adapted(prompts, request.model)
    answer = endpoint.answer(request, engine.session.tokenizer, prompts)
    collector = Collector(prompts)
    meter = Meter(metrics, exchange.started_at)
    try:
        async with aclosing(engine.generate(prompts)) as arrivals:
            async for deltas in arrivals:
                if not collector.has_started:
                    exchange.first_token_s = meter.start(deltas)
                collector.add(deltas)
                if request.stream:
                    await exchange.send_events(answer.events(deltas))
        if request.stream:
            await exchange.finish_stream(answer.last_event(collector.usage))
        else:
            await exchange.send_json(answer.whole(collector))
    finally:
        if collector.has_started:
            exchange.usage = collector.usage
            meter.end(collector)
