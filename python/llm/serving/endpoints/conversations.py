"""Answers a chat request of the APIs whose answers are blocks: as events, or whole."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing

import msgspec

from llm.inference import AsyncEngine, Collector, Prompt, Session, Usage
from llm.inference.parts import Part
from llm.serving import sse
from llm.serving.answers.blocks import BlockAnswer, Ending
from llm.serving.conversation_prompts import fitted, truncated_prompt, whole_prompt
from llm.serving.errors import APIError, renamed
from llm.serving.http import Exchange
from llm.serving.metrics import Meter, ServerMetrics
from llm.serving.protocol.chat import ChatCompletionRequest

Events = list[msgspec.Struct]


class Conversation(msgspec.Struct, kw_only=True):
    """A chat request on its way to an answer of blocks.

    Attributes:
        chat: The request in the form of chat completions.
        answer: Builds the answer.
        names: The names that the fields of a chat request have in the API, for errors.
        keep: Stores the answer once it is whole, before the client sees its end.
        fits_context: Whether `max_tokens` is cut to what the context has left after the prompt.
        drops_oldest: Whether the oldest turns are left out if the prompt doesn't fit.
        ping_s: After how many seconds without an event the answer's own sign of life is due; None for never.
        began_at: When the request arrived, on the clock of `time.perf_counter`.
        usage: Tokens so far; None before the first token.
    """

    chat: ChatCompletionRequest
    answer: BlockAnswer
    names: Mapping[str, str]
    keep: Callable[[], Awaitable[None]] | None = None
    fits_context: bool = False
    drops_oldest: bool = False
    ping_s: float | None = None
    began_at: float = msgspec.field(default_factory=time.perf_counter)
    usage: Usage | None = None
    first_token_s: float | None = None


async def send(
    conversation: Conversation, exchange: Exchange, engine: AsyncEngine, metrics: ServerMetrics, *, is_streamed: bool
) -> None:
    """Answers an exchange; its blocks are freed on an error, a cancellation or a disconnect.

    A stream starts with the first token or ping, so a rejected request still gets its own HTTP status.

    Raises:
        APIError: The prompt is invalid.
        LLMError: The engine rejected the request or failed while answering it.
    """
    try:
        async with aclosing(answer_events(conversation, engine, metrics)) as arrivals:
            async for events in arrivals:
                if is_streamed:
                    await exchange.send_events(framed(events))
        if is_streamed:
            await exchange.end_stream(b"")
        else:
            await exchange.send_json(conversation.answer.whole())
    finally:
        exchange.usage, exchange.first_token_s = conversation.usage, conversation.first_token_s


async def answer_events(
    conversation: Conversation, engine: AsyncEngine, metrics: ServerMetrics
) -> AsyncGenerator[Events, None]:
    """Runs a conversation and yields the events of its answer, each list with all that arrived since the previous one.

    Raises:
        APIError: The prompt is invalid.
        LLMError: The engine rejected the request or failed while answering it.
    """
    answer = conversation.answer
    # Runs in a separate thread, because encoding a long prompt must not delay other requests.
    try:
        prompt = await asyncio.to_thread(_prompt, conversation, engine.session)
    except APIError as error:
        raise renamed(error, conversation.names) from error
    collector = Collector([prompt])
    meter = Meter(metrics, conversation.began_at)
    last = None
    has_begun, is_silent = False, True
    try:
        async with aclosing(engine.generate([prompt], tick_s=conversation.ping_s)) as arrivals:
            async for deltas in arrivals:
                collector.add(deltas)
                events: Events = []
                if deltas and last is None:
                    conversation.first_token_s = meter.start(deltas)
                if not has_begun:
                    has_begun = True
                    events += answer.started(collector.usage if deltas else Usage.of(len(prompt.token_ids), 0))
                elif not deltas and is_silent:
                    events += answer.pinged()
                for _, last in deltas:
                    if last.logprobs:
                        answer.note_logprobs(last.logprobs)
                    events += answer.add([Part("text", None, last.text)] if last.parts is None else last.parts)
                is_silent = not events and (is_silent or not deltas)  # a list without deltas is a tick
                yield events
        events = list(answer.finish(_ending(conversation, prompt, collector)))
        if conversation.keep is not None:
            await conversation.keep()
        yield events
    finally:
        if last is not None:
            conversation.usage = collector.usage
            meter.end(collector)


def framed(events: Iterable[msgspec.Struct]) -> bytes:
    """Returns events in the bytes of a stream."""
    return b"".join(map(sse.named_event, events))


def _prompt(conversation: Conversation, session: Session) -> Prompt:
    prompt = (truncated_prompt if conversation.drops_oldest else whole_prompt)(conversation.chat, session)
    [prompt] = session.adapted([prompt], conversation.chat.model)
    return fitted(prompt, session) if conversation.fits_context else prompt


def _ending(conversation: Conversation, prompt: Prompt, collector: Collector) -> Ending:
    [output] = collector.outputs()
    wanted = conversation.chat.max_tokens
    own_stops = conversation.chat.stop_strings
    stop_index = output.stop_index
    return Ending(
        finish_reason=output.finish_reason,
        usage=collector.usage,
        # The template's own ends of a turn follow the request's stop strings.
        stop_string=None if stop_index is None or stop_index >= len(own_stops) else own_stops[stop_index],
        is_full=wanted is None or wanted != prompt.params.max_tokens,
    )
