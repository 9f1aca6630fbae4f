"""Prompts of the APIs whose requests become chat requests: one prompt each, fitted to templates and to the context."""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from llm.errors import ChatTemplateError
from llm.inference import Prompt, Session
from llm.serving.prompts import chat_prompts
from llm.serving.protocol.chat import ChatCompletionRequest, ChatMessage

_INSTRUCTING = ("system", "developer")


def whole_prompt(chat: ChatCompletionRequest, session: Session) -> Prompt:
    """Returns the prompt of the whole conversation.

    Agents send instructions in the middle of a conversation too. Where the template takes them only at its beginning,
    later ones become text of the user.

    Raises:
        APIError: 400 if the checkpoint has no chat template.
        ChatTemplateError: The template rejects the conversation.
    """
    try:
        [prompt] = chat_prompts(chat, session)
    except ChatTemplateError:
        messages = _without_late_instructions(chat.messages)
        if len(messages) == len(chat.messages) and messages == chat.messages:
            raise
        [prompt] = chat_prompts(msgspec.structs.replace(chat, messages=messages), session)
    return prompt


def truncated_prompt(chat: ChatCompletionRequest, session: Session) -> Prompt:
    """Returns the prompt without as many of the oldest turns as it takes to fit; instructions before them stay.

    Raises:
        LLMError: The same errors as in `whole_prompt`.
    """
    messages = chat.messages
    first = _num_instructions(messages)
    starts = [at for at, message in enumerate(messages) if at > first and message.role == "user"]

    def cut_to(start: int) -> Prompt:
        return whole_prompt(msgspec.structs.replace(chat, messages=messages[:first] + messages[start:]), session)

    def fits(prompt: Prompt) -> bool:
        return session.room(prompt.token_ids) >= (chat.max_tokens or 1)

    prompt = whole_prompt(chat, session)
    if not starts or fits(prompt):
        return prompt
    return cut_to(starts[min(bisect_left(starts, True, key=lambda start: fits(cut_to(start))), len(starts) - 1)])


def fitted(prompt: Prompt, session: Session) -> Prompt:
    """Returns the prompt with `max_tokens` cut to what the context has left, if the prompt itself fits."""
    room = session.room(prompt.token_ids)
    if room <= 0 or (prompt.params.max_tokens or 0) <= room:
        return prompt
    return msgspec.structs.replace(prompt, params=msgspec.structs.replace(prompt.params, max_tokens=room))


def _num_instructions(messages: Sequence[ChatMessage]) -> int:
    """Returns how many messages of the system the conversation begins with."""
    return next((at for at, message in enumerate(messages) if message.role not in _INSTRUCTING), len(messages))


def _without_late_instructions(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    first = _num_instructions(messages)
    folded = list(messages[:first])
    for message in messages[first:]:
        turn = msgspec.structs.replace(message, role="user") if message.role in _INSTRUCTING else message
        last = folded[-1] if len(folded) > first else None
        if last is not None and last.role == turn.role == "user":
            folded[-1] = msgspec.structs.replace(last, content=f"{last.text}\n\n{turn.text}")
        else:
            folded.append(turn)
    return folded
