"""From a typed request to the engine and back: prompts as ids, sampling parameters, one stream of deltas."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from llm.errors import InternalError, InvalidArgumentError
from llm.inference import AsyncEngine, Delta, TokenLogprob
from llm.serving.errors import bad_request, context_overflow
from llm.serving.protocol import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    FinishReason,
    GenerationRequest,
    Usage,
)
from llm.settings.sampling import SamplingParams
from llm.tokenization import BaseTokenizer
from llm.tokenization.chat import encode_chat

COMPLETION_MAX_TOKENS = 16

# Fields of a request that are sampling parameters under the same name.
_SAMPLING_FIELDS = (
    "n",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "allowed_token_ids",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "prompt_logprobs",
    "skip_special_tokens",
    "include_stop_str_in_output",
)


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, ready for the engine; it becomes `params.n` choices."""

    token_ids: list[int]
    params: SamplingParams
    priority: int = 0


def chat_prompts(request: ChatCompletionRequest, engine: AsyncEngine) -> list[Prompt]:
    """Renders a conversation with the checkpoint's template; the answer may take the rest of the context.

    Raises:
        APIError: 400, no chat template, or the conversation doesn't fit.
        ChatTemplateError: The template refuses the conversation.
    """
    tokenizer = engine.tokenizer
    if tokenizer.chat_template is None:
        message = "This model has no chat template, so it can't chat\nhint: use /v1/completions"
        raise bad_request(message, param="messages", code="chat_template_missing")
    token_ids = list(encode_chat(tokenizer, [_template_message(message) for message in request.messages]))
    room = _room(token_ids, engine, "messages")
    asked = request.max_completion_tokens or request.max_tokens
    stop = tuple(dict.fromkeys((*request.stop_strings, *tokenizer.chat_stop)))
    params = _sampling_params(request, engine, stop=stop, max_tokens=_max_tokens(asked, room, room, "messages"))
    return [Prompt(token_ids=token_ids, params=params, priority=request.priority or 0)]


def completion_prompts(request: CompletionRequest, engine: AsyncEngine) -> list[Prompt]:
    """Encodes each prompt; the default of 16 new tokens is OpenAI's.

    Raises:
        APIError: 400, an empty prompt, an unknown token id, or a prompt that doesn't fit.
    """
    prompts = []
    for token_ids in _prompt_ids(request.prompt, engine.tokenizer):
        room = _room(token_ids, engine, "prompt")
        max_tokens = _max_tokens(request.max_tokens, COMPLETION_MAX_TOKENS, room, "prompt")
        params = _sampling_params(request, engine, stop=request.stop_strings, max_tokens=max_tokens)
        prompts.append(Prompt(token_ids=token_ids, params=params, priority=request.priority or 0))
    return prompts


def _template_message(message: ChatMessage) -> dict[str, str]:
    # `developer` is OpenAI's newer word for `system`; templates know only the old one.
    role = "system" if message.role == "developer" else message.role
    rendered = {"role": role, "content": message.text}
    return rendered | {"name": message.name} if message.name else rendered


def _prompt_ids(prompt: str | list[Any], tokenizer: BaseTokenizer) -> list[list[int]]:
    prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    return [_checked_ids(one, tokenizer) for one in prompts]


def _checked_ids(prompt: str | list[int], tokenizer: BaseTokenizer) -> list[int]:
    token_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not token_ids:
        raise bad_request("`prompt` is empty: this model needs at least one token to go on from", param="prompt")
    if max(token_ids) >= tokenizer.vocab_size:
        message = f"`prompt` holds token id {max(token_ids)}, but this model's ids end at {tokenizer.vocab_size - 1}"
        raise bad_request(message, param="prompt")
    return token_ids


def _room(token_ids: Sequence[int], engine: AsyncEngine, param: str) -> int:
    """How many new tokens fit after the prompt; at least one must."""
    room = engine.max_model_len - len(token_ids)
    if room < 1:
        message = (
            f"This model's maximum context length is {engine.max_model_len} tokens, but your {param} take"
            f" {len(token_ids)}, which leaves no room for an answer\nhint: shorten the {param}"
        )
        raise context_overflow(message, param)
    return room


def _max_tokens(asked: int | None, default: int, room: int, param: str) -> int:
    """The new tokens allowed: a default is cut to what fits, a number asked for must fit."""
    if asked is None:
        return min(default, room)
    if asked > room:
        message = (
            f"`max_tokens` is {asked}, but only {room} tokens are left of this model's context after your {param}"
            f"\nhint: shorten the {param} or ask for at most {room}"
        )
        raise context_overflow(message, param)
    return asked


def _sampling_params(
    request: GenerationRequest, engine: AsyncEngine, *, stop: tuple[str, ...], max_tokens: int
) -> SamplingParams:
    """The checkpoint's own defaults, overridden by what the request says."""
    asked = {name: getattr(request, name) for name in _SAMPLING_FIELDS}
    given = {name: value for name, value in asked.items() if value is not None}
    params: dict[str, Any] = {**engine.default_params, **given, "max_tokens": max_tokens}
    params["stop"] = (*params.get("stop", ()), *stop)
    params["logprobs"] = request.num_logprobs
    params["logit_bias"] = {int(token_id): bias for token_id, bias in (request.logit_bias or {}).items()}
    for name in ("allowed_token_ids", "stop_token_ids", "logit_bias"):
        _check_ids(name, params.get(name) or (), engine.tokenizer)
    for name in ("allowed_token_ids", "stop_token_ids"):
        if params.get(name) is not None:
            params[name] = tuple(params[name])
    try:
        return SamplingParams(**params)
    except InvalidArgumentError as error:
        raise bad_request(str(error), param="min_tokens") from error


def _check_ids(name: str, token_ids: Iterable[int], tokenizer: BaseTokenizer) -> None:
    for token_id in token_ids:
        if token_id >= tokenizer.vocab_size:
            message = f"`{name}` holds token id {token_id}, but this model's ids end at {tokenizer.vocab_size - 1}"
            raise bad_request(message, param=name)


async def merged_deltas(prompts: list[Prompt], engine: AsyncEngine) -> AsyncGenerator[tuple[int, Delta], None]:
    """Runs all prompts at once and yields (choice index, delta) as they come: the first prompt's choices come first.

    Closing this generator closes the engine's iterators, which gives every prompt's blocks back.
    """
    queue: asyncio.Queue[tuple[int, Delta] | asyncio.Task[None]] = asyncio.Queue()
    first_choices = itertools.accumulate((prompt.params.n for prompt in prompts[:-1]), initial=0)
    pumps = (_pump(first, prompt, engine, queue) for first, prompt in zip(first_choices, prompts, strict=True))
    tasks = {asyncio.create_task(pump) for pump in pumps}
    for task in tasks:
        task.add_done_callback(queue.put_nowait)
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, asyncio.Task):
                item.result()
                running -= 1
                continue
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(first_choice: int, prompt: Prompt, engine: AsyncEngine, queue: asyncio.Queue[Any]) -> None:
    generator = engine.generate_choices(prompt.token_ids, prompt.params, priority=prompt.priority)
    async with aclosing(generator) as deltas:
        async for choice, delta in deltas:
            queue.put_nowait((first_choice + choice, delta))


class Tally:
    """What came so far: each choice's text and end, and the tokens for `usage`."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        num_choices = sum(prompt.params.n for prompt in prompts)
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._finish_reasons: list[FinishReason | None] = [None] * num_choices
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(num_choices)]
        self._prompt_logprobs: list[tuple[TokenLogprob, ...] | None] = [None] * num_choices
        self._prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        self._completion_tokens = 0
        self._started = False

    def add(self, index: int, delta: Delta) -> None:
        """Takes one delta of one choice."""
        self._started = True
        self._completion_tokens += len(delta.token_ids)
        self._texts[index].append(delta.text)
        self._logprobs[index].extend(delta.logprobs or ())
        self._prompt_logprobs[index] = delta.prompt_logprobs or self._prompt_logprobs[index]
        if delta.finish_reason is not None:
            self._finish_reasons[index] = delta.finish_reason

    def choices(self) -> Iterator[tuple[int, str, FinishReason]]:
        """Index, text and reason of each choice, all of them ended."""
        for index, (texts, finish_reason) in enumerate(zip(self._texts, self._finish_reasons, strict=True)):
            if finish_reason is None:
                raise InternalError(f"choice {index} came to its end without a finish reason; please report it")
            yield index, "".join(texts), finish_reason

    def logprobs(self, index: int) -> list[TokenLogprob]:
        """Of a choice's tokens so far, where they were asked for."""
        return self._logprobs[index]

    def prompt_logprobs(self, index: int) -> tuple[TokenLogprob, ...] | None:
        """Of a choice's prompt, where they were asked for."""
        return self._prompt_logprobs[index]

    @property
    def usage(self) -> Usage:
        """The tokens so far; a request that was refused took none."""
        prompt_tokens = self._prompt_tokens if self._started else 0
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=prompt_tokens + self._completion_tokens,
        )
