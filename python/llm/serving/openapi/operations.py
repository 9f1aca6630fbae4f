"""The operations of the API, one line each: what an operation does, its request and its responses.

A route without a line here fails a test.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from llm.serving.errors import ErrorResponse
from llm.serving.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from llm.serving.protocol.completions import Completion, CompletionRequest
from llm.serving.protocol.embeddings import (
    EmbeddingList,
    EmbeddingRequest,
    Ranking,
    RerankRequest,
    ScoreList,
    ScoreRequest,
)
from llm.serving.protocol.messages import (
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    CountTokensRequest,
    Message,
    MessageDelta,
    MessagesErrorResponse,
    MessagesRequest,
    MessageStart,
    MessageStop,
    Ping,
    TokensCount,
)
from llm.serving.protocol.models import (
    AdapterModel,
    Health,
    LoadAdapterRequest,
    Model,
    ModelList,
    UnloadAdapterRequest,
    Version,
)
from llm.serving.protocol.responses import (
    DeletedResponse,
    InputItemList,
    Response,
    ResponseEvent,
    ResponsesRequest,
)
from llm.serving.protocol.tokenize import (
    DetokenizedText,
    DetokenizeRequest,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
)

TEXT = "text/plain"

MessageEvent = (
    MessageStart
    | ContentBlockStart
    | ContentBlockDelta
    | ContentBlockStop
    | MessageDelta
    | MessageStop
    | Ping
    | MessagesErrorResponse
)


class Operation(msgspec.Struct, frozen=True):
    """A method of a path.

    Attributes:
        summary: What the operation does.
        request: Type of the JSON body, if there is one.
        answer: Type of the JSON response, or the media type of another response.
        events: Type of an event if the response can be streamed.
        error: Type of error responses.
        answers: Types of responses with a status other than 200.
        is_open: Whether the operation needs no API key.
        query: Types of the parameters in the query, all of them optional.
    """

    summary: str
    request: Any = None
    answer: Any = None
    events: Any = None
    error: Any = ErrorResponse
    answers: Mapping[int, Any] = {}
    is_open: bool = False
    query: Mapping[str, Any] = {}


_PageLength = Annotated[int, msgspec.Meta(ge=1, le=100)]

OPERATIONS = {
    "GET /health": Operation("Whether the model can answer", None, Health, answers={503: Health}, is_open=True),
    "GET /ready": Operation("Whether the model can answer", None, Health, answers={503: Health}, is_open=True),
    "GET /ping": Operation("Whether the model can answer", None, Health, answers={503: Health}, is_open=True),
    "GET /version": Operation("The server's version", None, Version),
    "GET /metrics": Operation("Metrics in Prometheus' format", None, TEXT, is_open=True),
    "GET /v1/models": Operation("List the models", None, ModelList),
    "GET /v1/models/{id:path}": Operation("Describe a model", None, Model),
    "POST /v1/load_lora_adapter": Operation("Load an adapter", LoadAdapterRequest, AdapterModel),
    "POST /v1/unload_lora_adapter": Operation("Unload an adapter", UnloadAdapterRequest, AdapterModel),
    "POST /v1/chat/completions": Operation(
        "Answer a conversation", ChatCompletionRequest, ChatCompletion, ChatCompletionChunk
    ),
    "POST /v1/completions": Operation("Continue a text", CompletionRequest, Completion, Completion),
    "POST /v1/responses": Operation("Create a response", ResponsesRequest, Response, ResponseEvent),
    "GET /v1/responses/{id}": Operation(
        "Read a stored response", None, Response, ResponseEvent, query={"stream": bool, "starting_after": int}
    ),
    "DELETE /v1/responses/{id}": Operation("Delete a stored response", None, DeletedResponse),
    "POST /v1/responses/{id}/cancel": Operation("Cancel a response in the background", None, Response),
    "GET /v1/responses/{id}/input_items": Operation(
        "List the input of a stored response",
        None,
        InputItemList,
        query={"limit": _PageLength, "order": Literal["asc", "desc"], "after": str},
    ),
    "POST /v1/messages": Operation(
        "Answer a conversation in Anthropic's form", MessagesRequest, Message, MessageEvent, MessagesErrorResponse
    ),
    "POST /v1/messages/count_tokens": Operation(
        "Count the tokens of a conversation", CountTokensRequest, TokensCount, None, MessagesErrorResponse
    ),
    "POST /v1/embeddings": Operation("Turn texts into vectors", EmbeddingRequest, EmbeddingList),
    "POST /v1/score": Operation("Score answers by a reward model, or the similarity of texts", ScoreRequest, ScoreList),
    "POST /v1/rerank": Operation("Order documents by their similarity to a query", RerankRequest, Ranking),
    "POST /tokenize": Operation("Turn a text or conversation into tokens", TokenizeRequest, Tokens),
    "POST /detokenize": Operation("Turn tokens into text", DetokenizeRequest, DetokenizedText),
    "GET /tokenizer_info": Operation("Describe the tokenizer", None, TokenizerInfo),
}
