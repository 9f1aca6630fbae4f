"""`POST /v1/score`: rewards by a reward model; by any other model, cosines of the embeddings of two texts."""

import asyncio
import time
from collections.abc import Sequence

from llm.inference import Session
from llm.models.reward import RewardModel
from llm.serving.endpoints.embeddings import counted, embed, encode, inputs_of, new_id
from llm.serving.errors import bad_request
from llm.serving.http import Exchange
from llm.serving.protocol.chat import ChatMessage
from llm.serving.protocol.embeddings import EmbeddingUsage, PairScore, ScoreList, ScoreRequest
from llm.serving.services import Services
from llm.serving.template_messages import template_messages


async def score(services: Services, exchange: Exchange) -> None:
    """Handles `POST /v1/score`."""
    request = await services.read(exchange, ScoreRequest)
    services.refuse_adapter(request.model)
    is_judged = isinstance(services.engine.ready().session.engine.runner.model, RewardModel)
    _check_given(request, is_judged)
    left, right = _sides(request)

    async def work() -> None:
        if is_judged:
            values, usage = await _rewards(services, exchange, request)
        else:
            values, usage = await _cosines(services, exchange, left, right)
        data = [PairScore(index=index, score=value) for index, value in enumerate(values)]
        answer = ScoreList(id=new_id("score"), created=int(time.time()), model=request.model, data=data, usage=usage)
        await exchange.send_json(answer)

    param = next(name for name in ("text_1", "messages", "input") if getattr(request, name) is not None)
    await services.run(exchange, work(), prompt_param=param)


def _check_given(request: ScoreRequest, is_judged: bool) -> None:
    """Checks that a request has what the model can score, in one form.

    Raises:
        APIError: 400 if it hasn't.
    """
    if (request.text_1 is None) != (request.text_2 is None):
        missing = "text_1" if request.text_1 is None else "text_2"
        raise bad_request(f"`text_1` and `text_2` must be given together, got no `{missing}`", param=missing)
    given = [name for name in ("text_1", "messages", "input") if getattr(request, name) is not None]
    if not is_judged and given != ["text_1"]:
        message = "`text_1` and `text_2` must be given, and nothing else: `messages` and `input` need a reward model"
        raise bad_request(message, param=next((name for name in given if name != "text_1"), "text_1"))
    if len(given) != 1:
        words = ", ".join(f"`{name}`" for name in given) or "nothing"
        raise bad_request(
            f"one of `messages`, `input`, or `text_1` with `text_2`, must be given, got {words}", param="messages"
        )


def _sides(request: ScoreRequest) -> tuple[list[str], list[str]]:
    """Returns the first texts of a request's pairs, which may be one for all, and the second ones.

    Raises:
        APIError: 400 if there isn't one text of each side for a pair.
    """
    if request.text_1 is None or request.text_2 is None:
        return [], []
    left = [request.text_1] if isinstance(request.text_1, str) else request.text_1
    right = [request.text_2] if isinstance(request.text_2, str) else request.text_2
    if len(left) not in (1, len(right)):
        message = f"`text_1` must hold one text or as many as `text_2` ({len(right)}), got {len(left)}"
        raise bad_request(message, param="text_1")
    return left, right


async def _cosines(
    services: Services, exchange: Exchange, left: Sequence[str], right: Sequence[str]
) -> tuple[list[float], EmbeddingUsage]:
    vectors, usage = await embed(services, exchange, [*left, *right])
    values: list[float] = (vectors[: len(left)] * vectors[len(left) :]).sum(-1).tolist()
    return values, usage


async def _rewards(services: Services, exchange: Exchange, request: ScoreRequest) -> tuple[list[float], EmbeddingUsage]:
    engine = services.engine.ready()
    sequences = await asyncio.to_thread(_judged_ids, engine.session, request)
    values: list[float] = (await engine.rewards(sequences)).tolist()
    return values, counted(services, exchange, sum(map(len, sequences)))


def _judged_ids(session: Session, request: ScoreRequest) -> list[list[int]]:
    """Returns the ids of what a reward model judges.

    Raises:
        APIError: 400 if a list mixes messages and conversations, or holds too many.
    """
    if request.input is not None:
        return encode(session, inputs_of(request.input), add_special_tokens=True)
    left, right = _sides(request)
    asked = [
        [ChatMessage(role="user", content=one), ChatMessage(role="assistant", content=other)]
        for one, other in zip(left if len(left) == len(right) else left * len(right), right, strict=True)
    ]
    conversations = asked or _conversations(request.messages or [])
    name = session.answer_format.calls
    return [session.conversation(template_messages(messages, name)) for messages in conversations]


def _conversations(messages: Sequence[ChatMessage | list[ChatMessage]]) -> list[list[ChatMessage]]:
    whole = [one for one in messages if isinstance(one, list)]
    single = [one for one in messages if isinstance(one, ChatMessage)]
    if whole and single:
        raise bad_request("`messages` must be one conversation or a list of conversations, got both", param="messages")
    if any(not one for one in whole):
        raise bad_request("`messages` must hold no empty conversation", param="messages")
    return whole or [single]
