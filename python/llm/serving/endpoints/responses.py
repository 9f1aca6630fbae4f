"""`/v1/responses`: creates responses, and reads, cancels and deletes stored ones."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import msgspec

from llm.serving.answers.responses import ResponseAnswer, new_response_id
from llm.serving.background import BackgroundRun
from llm.serving.endpoints.conversations import Conversation, answer_events, framed, send
from llm.serving.errors import APIError, bad_request, not_found
from llm.serving.http import Exchange
from llm.serving.protocol.common import encoder
from llm.serving.protocol.response_items import ItemReference, KeptItem
from llm.serving.protocol.responses import CHAT_FIELD_NAMES, DeletedResponse, InputItemList, ResponsesRequest
from llm.serving.services import Services
from llm.serving.store import Record
from llm.serving.translation.response_forms import RESPONSES_FORM
from llm.serving.translation.responses import chat_body, input_items, response_of_item

_MAX_PAGE = 100
_DEFAULT_PAGE = 20


class _Stored(msgspec.Struct):
    """What a conversation needs of a stored response."""

    output: list[KeptItem]


class _Job(msgspec.Struct, kw_only=True):
    """A response on its way: its request, its own items and its answer."""

    services: Services
    request: ResponsesRequest
    owner: str
    items: Sequence[KeptItem]
    answer: ResponseAnswer

    async def keep(self, *, is_running: bool = False) -> None:
        """Stores the response as it is, unless the request forbids it."""
        if self.request.store is False:
            return
        record = Record(
            id=self.answer.id,
            owner=self.owner,
            previous_id=self.request.previous_response_id,
            response=encoder.encode(self.answer.whole()),
            input=encoder.encode(self.items),
            is_running=is_running,
        )
        await self.services.store.put(record)


async def create(services: Services, exchange: Exchange) -> None:
    """Handles `POST /v1/responses`."""
    request = await services.read_form(exchange, RESPONSES_FORM)
    if request.background and request.store is False:
        raise bad_request("`background` needs `store`: a response that isn't stored can't be read", param="store")
    owner = exchange.key_name or ""
    response_id = new_response_id()
    own = await _resolved(services, input_items(request, response_id), owner)
    history = await _history(services, request.previous_response_id, owner)
    chat = services.chat_request(chat_body(request, [*history, *own]), CHAT_FIELD_NAMES)
    answer = ResponseAnswer(request, response_id, services.engine.ready().session.tokenizer)
    job = _Job(services=services, request=request, owner=owner, items=own, answer=answer)
    conversation = Conversation(
        chat=chat,
        answer=answer,
        names=CHAT_FIELD_NAMES,
        keep=job.keep,
        drops_oldest=request.truncation == "auto",
        began_at=exchange.started_at,
    )
    await (_begin if request.background else _answer)(job, conversation, exchange)


async def retrieve(services: Services, exchange: Exchange) -> None:
    """Handles `GET /v1/responses/{id}`: the response as it is, or the events of one that is generated."""
    run = _run(services, exchange)
    after = _whole_number(exchange, "starting_after", -1)
    if _is_true(exchange, "stream"):
        if run is None or not run.is_streamed:
            await _record(services, exchange)
            message = "`stream` is only possible while a response with `background` and `stream` is generated"
            raise bad_request(message, param="stream")
        await _follow(services, run, exchange, after + 1)
        return
    if run is not None:
        await exchange.send_json(run.answer.whole())
        return
    await exchange.send_bytes((await _record(services, exchange)).response, b"application/json")


async def delete(services: Services, exchange: Exchange) -> None:
    """Handles `DELETE /v1/responses/{id}`; a response that is generated is cancelled first."""
    response_id = exchange.path_parameters["id"]
    if (run := _run(services, exchange)) is not None:
        await run.cancel()
    if not await services.store.delete(response_id, exchange.key_name or ""):
        raise _unknown(response_id)
    await exchange.send_json(DeletedResponse(id=response_id))


async def cancel(services: Services, exchange: Exchange) -> None:
    """Handles `POST /v1/responses/{id}/cancel`; a response that has ended stays as it is."""
    run = _run(services, exchange)
    if run is not None:
        await run.cancel()
    record = await _record(services, exchange)
    if run is None and not msgspec.json.decode(record.response, type=dict).get("background"):
        raise bad_request("Only responses that were created with `background` can be cancelled", param="id")
    await exchange.send_bytes(record.response, b"application/json")


async def list_input(services: Services, exchange: Exchange) -> None:
    """Handles `GET /v1/responses/{id}/input_items`, page by page."""
    record = await _record(services, exchange)
    items = msgspec.json.decode(record.input, type=list[KeptItem])
    order = exchange.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise bad_request(f"`order` must be asc or desc, got {order[:20]!r}", param="order")
    limit = _whole_number(exchange, "limit", _DEFAULT_PAGE)
    if not 1 <= limit <= _MAX_PAGE:
        raise bad_request(f"`limit` must be from 1 to {_MAX_PAGE}, got {limit}", param="limit")
    items = items[::-1] if order == "desc" else items
    rest = items[_start(items, exchange.query.get("after")) :]
    page = rest[:limit]
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    await exchange.send_json(InputItemList(data=page, first_id=first, last_id=last, has_more=len(rest) > limit))


async def _answer(job: _Job, conversation: Conversation, exchange: Exchange) -> None:
    """Answers a request that waits; an error within a stream is the response's, and is stored with it."""
    services, is_streamed = job.services, bool(job.request.stream)
    work = send(conversation, exchange, services.engine.ready(), services.metrics, is_streamed=is_streamed)
    try:
        await services.run(exchange, work, prompt_param="input")
    except APIError as error:
        if exchange.status is None or exchange.finished:
            raise
        events = framed(job.answer.failed(error))
        await job.keep()
        await exchange.end_stream(events)


async def _begin(job: _Job, conversation: Conversation, exchange: Exchange) -> None:
    """Starts a response that nobody has to wait for, and answers with its beginning or its events."""
    services, answer = job.services, job.answer
    run = BackgroundRun(answer, job.owner, is_streamed=bool(job.request.stream))
    with ExitStack() as starting:
        starting.enter_context(services.admitted())
        await job.keep(is_running=True)
        services.background_runs[answer.id] = run
        arrivals = answer_events(conversation, services.engine.ready(), services.metrics)
        exchange.background = run.start(arrivals, job.keep)
        progress = starting.pop_all()

    def ended(_: object) -> None:
        progress.close()
        services.background_runs.pop(answer.id, None)
        exchange.usage = conversation.usage

    exchange.background.add_done_callback(ended)
    if run.is_streamed:
        await _follow(services, run, exchange, 0)
    else:
        await exchange.send_json(answer.whole())


async def _follow(services: Services, run: BackgroundRun, exchange: Exchange, start: int) -> None:
    async def forward() -> None:
        await exchange.send_events(b"")
        async for frames in run.follow(start):
            await exchange.send_events(frames)
        await exchange.end_stream(b"")

    await exchange.unless_abandoned(forward(), services.stopping)


async def _history(services: Services, previous_id: str | None, owner: str) -> list[KeptItem]:
    """Returns the items of the conversation that a response ended.

    Raises:
        APIError: 400 if the response is incomplete, 404 if it or one before it is not stored.
    """
    if previous_id is None:
        return []
    records = await services.store.conversation(previous_id, owner)
    if isinstance(records, str):
        message = f"Previous response with id '{records}' not found"
        raise not_found(message, param="previous_response_id", code="previous_response_not_found")
    items: list[KeptItem] = []
    for record in records:
        if record.is_running:
            message = f"The response '{record.id}' is still being generated\nhint: wait until it has ended"
            raise bad_request(message, param="previous_response_id")
        items += msgspec.json.decode(record.input, type=list[KeptItem])
        items += msgspec.json.decode(record.response, type=_Stored).output
    return items


async def _resolved(services: Services, items: Iterable[KeptItem | ItemReference], owner: str) -> list[KeptItem]:
    """Returns items with the stored ones in place of references.

    Raises:
        APIError: 404 if an item is not stored.
    """
    found: list[KeptItem] = []
    for item in items:
        found.append(await _referenced(services, item.id, owner) if isinstance(item, ItemReference) else item)
    return found


async def _referenced(services: Services, item_id: str, owner: str) -> KeptItem:
    response_id = response_of_item(item_id)
    record = None if response_id is None else await services.store.get(response_id, owner)
    if record is not None:
        items = msgspec.json.decode(record.input, type=list[KeptItem])
        items += msgspec.json.decode(record.response, type=_Stored).output
        for item in items:
            if item.id == item_id:
                return item
    raise not_found(f"Item with id '{item_id[:100]}' not found", param="input", code="item_not_found")


def _run(services: Services, exchange: Exchange) -> BackgroundRun | None:
    run = services.background_runs.get(exchange.path_parameters["id"])
    return run if run is not None and run.owner == (exchange.key_name or "") else None


async def _record(services: Services, exchange: Exchange) -> Record:
    response_id = exchange.path_parameters["id"]
    record = await services.store.get(response_id, exchange.key_name or "")
    if record is None:
        raise _unknown(response_id)
    return record


def _unknown(response_id: str) -> APIError:
    return not_found(f"Response with id '{response_id[:100]}' not found", param="id", code="response_not_found")


def _whole_number(exchange: Exchange, name: str, default: int) -> int:
    given = exchange.query.get(name)
    if given is None:
        return default
    if not given.isascii() or not given.isdigit() or len(given) > 9:
        raise bad_request(f"`{name}` must be a whole number, got {given[:20]!r}", param=name)
    return int(given)


def _is_true(exchange: Exchange, name: str) -> bool:
    given: str = exchange.query.get(name, "false").lower()
    if given not in ("true", "false"):
        raise bad_request(f"`{name}` must be true or false, got {given[:20]!r}", param=name)
    return given == "true"


def _start(items: Sequence[KeptItem], after: str | None) -> int:
    """Returns the index of the first item after the given one."""
    if after is None:
        return 0
    for at, item in enumerate(items):
        if item.id == after:
            return at + 1
    raise bad_request(f"`after` must be the id of an input item, got {after[:100]!r}", param="after")
