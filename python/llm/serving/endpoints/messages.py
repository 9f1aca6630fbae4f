"""`/v1/messages` and `/v1/messages/count_tokens`, in the form of Anthropic's API."""

import asyncio

from llm.serving.answers.messages import MessageAnswer
from llm.serving.conversation_prompts import whole_prompt
from llm.serving.endpoints.conversations import Conversation, send
from llm.serving.errors import APIError, renamed
from llm.serving.http import ErrorFormat, Exchange
from llm.serving.protocol.messages import CHAT_FIELD_NAMES, MessagesError, MessagesErrorResponse, TokensCount
from llm.serving.services import Services
from llm.serving.sse import named_event
from llm.serving.translation.message_forms import COUNT_TOKENS_FORM, MESSAGES_FORM
from llm.serving.translation.messages import chat_body

# Proxies close a connection that is silent for longer, often after a minute.
_PING_S = 10.0
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _error(error: APIError, request_id: str) -> MessagesErrorResponse:
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return MessagesErrorResponse(error=MessagesError(type=kind, message=error.body.message), request_id=request_id)


ERRORS = ErrorFormat(payload=_error, event=lambda error, request_id: named_event(_error(error, request_id)))


async def create(services: Services, exchange: Exchange) -> None:
    """Handles `POST /v1/messages`."""
    _name_request(exchange)
    request = await services.read_form(exchange, MESSAGES_FORM)
    chat = services.chat_request(chat_body(request), CHAT_FIELD_NAMES)
    conversation = Conversation(
        chat=chat,
        answer=MessageAnswer(request),
        names=CHAT_FIELD_NAMES,
        fits_context=True,
        ping_s=_PING_S if request.stream else None,
        began_at=exchange.started_at,
    )
    work = send(conversation, exchange, services.engine.ready(), services.metrics, is_streamed=bool(request.stream))
    await services.run(exchange, work, prompt_param="messages")


async def count_tokens(services: Services, exchange: Exchange) -> None:
    """Handles `POST /v1/messages/count_tokens`: the tokens of the prompt that the same request would have."""
    _name_request(exchange)
    request = await services.read_form(exchange, COUNT_TOKENS_FORM)
    chat = services.chat_request(chat_body(request), CHAT_FIELD_NAMES)
    session = services.engine.ready().session

    async def work() -> None:
        try:
            prompt = await asyncio.to_thread(whole_prompt, chat, session)
        except APIError as error:
            raise renamed(error, CHAT_FIELD_NAMES) from error
        await exchange.send_json(TokensCount(input_tokens=len(prompt.token_ids)))

    await services.run(exchange, work(), prompt_param="messages")


def _name_request(exchange: Exchange) -> None:
    """Adds the header in which Anthropic's clients look for the request's id."""
    exchange.response_headers.append((b"request-id", exchange.request_id.encode()))
