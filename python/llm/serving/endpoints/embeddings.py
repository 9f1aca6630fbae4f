"""Endpoints that compare texts by the model's last hidden states: embeddings and ranked documents."""

import asyncio
import base64
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from llm.inference import Session, Usage
from llm.serving.errors import bad_request
from llm.serving.http import Exchange
from llm.serving.protocol.embeddings import (
    MAX_INPUTS,
    Document,
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
    RankedDocument,
    Ranking,
    RerankRequest,
)
from llm.serving.services import Services

Vectors = NDArray[np.float32]


async def embeddings(services: Services, exchange: Exchange) -> None:
    """Handles `POST /v1/embeddings`."""
    request = await services.read(exchange, EmbeddingRequest)
    services.refuse_adapter(request.model)
    inputs = inputs_of(request.input)
    hidden_size = services.engine.ready().session.engine.runner.model.config.hidden_size
    if request.dimensions is not None and request.dimensions > hidden_size:
        message = f"`dimensions` must be at most the model's {hidden_size}, got {request.dimensions}"
        raise bad_request(message, param="dimensions")

    async def work() -> None:
        add = request.add_special_tokens is not False
        vectors, usage = await embed(services, exchange, inputs, add_special_tokens=add)
        await exchange.send_json(await asyncio.to_thread(_embedding_list, request, vectors, usage))

    await services.run(exchange, work(), prompt_param="input")


async def rerank(services: Services, exchange: Exchange) -> None:
    """Handles `POST /v1/rerank`: documents by their cosine to a query."""
    request = await services.read(exchange, RerankRequest)
    services.refuse_adapter(request.model)
    texts = request.texts

    async def work() -> None:
        vectors, usage = await embed(services, exchange, [request.query, *texts])
        scores = (vectors[1:] @ vectors[0]).tolist()
        order = sorted(range(len(texts)), key=lambda index: -scores[index])[: request.top_n or None]
        with_text = request.return_documents is not False
        results = [
            RankedDocument(
                index=index,
                relevance_score=scores[index],
                document=Document(text=texts[index]) if with_text else msgspec.UNSET,
            )
            for index in order
        ]
        await exchange.send_json(Ranking(id=new_id("rerank"), model=request.model, results=results, usage=usage))

    await services.run(exchange, work(), prompt_param="documents")


def inputs_of(given: str | list[Any]) -> list[str | list[int]]:
    """Returns the inputs as a list.

    Raises:
        APIError: 400 if the list mixes kinds, or holds too many inputs.
    """
    if isinstance(given, str):
        return [given]
    kinds = {type(one) for one in given}
    if len(kinds) > 1:
        raise bad_request("`input` must be all strings, all token ids or all lists of token ids", param="input")
    if kinds == {int}:
        return [given]
    if len(given) > MAX_INPUTS:
        raise bad_request(f"`input` must hold at most {MAX_INPUTS} inputs, got {len(given)}", param="input")
    return given


async def embed(
    services: Services, exchange: Exchange, inputs: Sequence[str | list[int]], *, add_special_tokens: bool = True
) -> tuple[Vectors, EmbeddingUsage]:
    """Returns a vector of unit length per input and the number of tokens; counts them for the key and the metrics."""
    engine = services.engine.ready()
    sequences = await asyncio.to_thread(encode, engine.session, inputs, add_special_tokens=add_special_tokens)
    vectors = await engine.embed(sequences, services.config.pooling)
    number = sum(map(len, sequences))
    return vectors, counted(services, exchange, number)


def counted(services: Services, exchange: Exchange, number: int) -> EmbeddingUsage:
    """Returns the usage of a request of so many tokens, and counts them for the key and the metrics."""
    exchange.usage = Usage.of(number, 0)
    services.metrics.count_tokens(exchange.usage)
    return EmbeddingUsage(prompt_tokens=number, total_tokens=number)


def encode(session: Session, inputs: Sequence[str | list[int]], *, add_special_tokens: bool) -> list[list[int]]:
    """Returns the token ids of inputs; those that are token ids already stay as they are."""
    return [
        session.encode(one, add_special_tokens=add_special_tokens) if isinstance(one, str) else one for one in inputs
    ]


def _embedding_list(request: EmbeddingRequest, vectors: Vectors, usage: EmbeddingUsage) -> EmbeddingList:
    if request.dimensions is not None:
        vectors = vectors[:, : request.dimensions]
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    is_text = request.encoding_format == "base64"
    data = [
        Embedding(index=index, embedding=_base64(vector) if is_text else vector.tolist())
        for index, vector in enumerate(vectors)
    ]
    return EmbeddingList(data=data, model=request.model, usage=usage)


def _base64(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def new_id(prefix: str) -> str:
    """Returns an id for a response."""
    return f"{prefix}-{uuid.uuid4().hex}"
