"""What every endpoint works with: the engine, once it is loaded, and the server's model, settings and metrics."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from llm.errors import ConfigError, LLMError
from llm.inference import AsyncEngine
from llm.serving import metrics as prometheus
from llm.serving.answer_metrics import ServedModel
from llm.serving.background import BackgroundRun, fail_interrupted, stopped_error
from llm.serving.errors import APIError, bad_request, from_llm_error, renamed, unavailable, unknown_model
from llm.serving.forms import RequestForm, parse_form
from llm.serving.http import Exchange
from llm.serving.parsing import UnknownKeys, parse_request, typed_request
from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.models import AdapterModel, Health, Model
from llm.serving.store import Bounds, open_store
from llm.settings.server import ServerConfig

logger = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=msgspec.Struct)


class EngineHolder:
    """Loads the engine once, in a thread, and reports its state."""

    def __init__(self, load_engine: Callable[[], AsyncEngine]) -> None:
        self._load_engine = load_engine
        self._engine: AsyncEngine | None = None
        self.error: BaseException | None = None
        self.settled = asyncio.Event()
        self.is_leaving = False  # `/health` says so, that balancers send no more requests
        self.is_draining = False  # running requests are finished, new ones refused

    def start(self) -> None:
        """Starts loading; `settled` is set once the engine is loaded or loading has failed."""
        loop = asyncio.get_running_loop()
        # A daemon thread, so that a load that hangs can't keep the process from exiting.
        threading.Thread(target=self._load, args=(loop,), name="llm-load", daemon=True).start()

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            engine = self._load_engine()
            engine.start()
            self._engine = engine
        except BaseException as error:  # noqa: BLE001 - kept, and raised again by the server's runner
            self.error = error
        finally:
            loop.call_soon_threadsafe(self.settled.set)

    @property
    def health(self) -> Health:
        """Returns the body of `/health`."""
        if self.error is not None:
            return Health(status="failed", reason=str(self.error))
        if self._engine is None:
            return Health(status="loading")
        if not self._engine.is_healthy:
            return Health(status="failed", reason="the engine stopped")
        return Health(status="draining" if self.is_leaving else "ok")

    def ready(self) -> AsyncEngine:
        """Returns the engine.

        Raises:
            APIError: 503 if the engine is still loading, failed or stopped.
        """
        health = self.health
        if self._engine is None or health.status in ("loading", "failed"):
            code = "model_loading" if health.status == "loading" else "engine_failed"
            raise unavailable(f"The model is unavailable: {health.reason or 'still loading'}", code)
        return self._engine

    def stats(self) -> Mapping[str, int]:
        """Returns the engine's statistics; empty until the engine is loaded."""
        return self._engine.stats() if self._engine is not None else {}

    async def shutdown(self) -> None:
        """Stops the engine if it is loaded; running requests end with an error."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)


class Services:
    """The parts of a server that endpoints share.

    Args:
        load_engine: Returns the engine; called once, in a separate thread.
        model_name: The model name that clients send, unless the settings name others.
        config: The server's settings.
    """

    def __init__(self, load_engine: Callable[[], AsyncEngine], model_name: str, config: ServerConfig) -> None:
        names = dict.fromkeys(config.served_model_name or (model_name,))
        self.models: dict[str, Model] = {name: Model(id=name, created=int(time.time())) for name in names}
        self.model = next(iter(self.models.values()))  # the one to show
        for name, path in config.adapter_paths.items():
            if name in self.models:
                raise ConfigError(f"an adapter must have a name of its own, got {name!r}, which is the model's")
            self.add_adapter(name, path)

        def load() -> AsyncEngine:
            engine = load_engine()
            self.metrics.describe_cache(*engine.session.engine.cache_format)
            return engine

        self.engine = EngineHolder(load)
        served = ServedModel(name=self.model.id, block_tokens=config.engine.block_size, adapters=self._adapter_names)
        self.metrics = prometheus.ServerMetrics(self.engine.stats, served)
        self.stopping = asyncio.Event()  # once set, running requests are ended
        self.config = config
        self.store = open_store(
            config.response_store,
            Bounds(max_count=config.response_store_max_count, max_bytes=config.response_store_max_bytes),
        )
        self.background_runs: dict[str, BackgroundRun] = {}
        # What the engine's queue would refuse anyway is refused before its prompt is encoded, however busy the engine.
        self._most_running = config.engine.max_running_requests + config.engine.max_waiting_requests
        self._num_running = 0
        self._unknown_keys = UnknownKeys(strict=config.strict_requests)

    async def start(self) -> None:
        """Starts to load the engine; stored responses that a server before this one was generating have failed."""
        self.engine.start()
        await fail_interrupted(self.store)

    async def stop(self) -> None:
        """Ends the work in the background, then stops the engine and closes the store."""
        for run in [*self.background_runs.values()]:
            await run.cancel(stopped_error())
        await self.engine.shutdown()
        await self.store.close()

    async def read(self, exchange: Exchange, request_type: type[RequestT]) -> RequestT:
        """Reads and checks the body of a request; the request may or may not name a model.

        Raises:
            APIError: The body is too large, a parameter is invalid, or the model is another one.
        """
        request = parse_request(await self.body(exchange), request_type, self._unknown_keys)
        name: str | None = getattr(request, "model", None)
        if name:
            self.check_model(name)
        return request

    async def read_form(self, exchange: Exchange, form: RequestForm[RequestT]) -> RequestT:
        """Reads and checks the body of a request to an API whose requests become chat requests.

        Raises:
            APIError: The body is too large, or a parameter is invalid.
        """
        return parse_form(await self.body(exchange), form, self._unknown_keys)

    def chat_request(self, body: dict[str, Any], names: Mapping[str, str]) -> ChatCompletionRequest:
        """Returns a chat request made from another API's, with errors in that API's names of the fields.

        Raises:
            APIError: A parameter is invalid, or the model is another one.
        """
        try:
            request = typed_request(body, ChatCompletionRequest, self._unknown_keys)
        except APIError as error:
            raise renamed(error, names) from error
        self.check_model(request.model)
        return request

    async def body(self, exchange: Exchange) -> bytes:
        """Reads the body of a request within the server's limits.

        Raises:
            APIError: The body is too large, incomplete, late or in an unknown encoding.
        """
        return await exchange.body(self.config.max_body_bytes, self.config.body_timeout_s)

    def add_adapter(self, name: str, path: str) -> AdapterModel:
        """Lists an adapter that the engine serves, or will once it is loaded, among the models."""
        model = AdapterModel(id=name, created=int(time.time()), root=path, parent=self.model.id)
        self.models[name] = model
        return model

    def _adapter_names(self) -> list[str]:
        return [name for name, model in tuple(self.models.items()) if isinstance(model, AdapterModel)]

    def refuse_adapter(self, name: str | None) -> None:
        """Refuses an adapter where only the model itself computes.

        Raises:
            APIError: 400 if an adapter has this name.
        """
        if name and isinstance(self.models.get(name), AdapterModel):
            message = f"Embeddings are computed without adapters\nhint: set `model` to {self.model.id!r}"
            raise bad_request(message, param="model")

    def check_model(self, name: str) -> Model:
        """Returns the model of a name.

        Raises:
            APIError: 404 if the server serves no model of this name.
        """
        if name not in self.models:
            raise unknown_model(name, tuple(self.models))
        return self.models[name]

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a generating request while it is in progress.

        Raises:
            APIError: 503 if too many are.
        """
        if self._num_running >= self._most_running:
            raise unavailable(f"the queue is full: {self._num_running} requests are in progress", "queue_full")
        self._num_running += 1
        try:
            with self.metrics.in_flight.track_inprogress():
                yield
        finally:
            self._num_running -= 1

    async def run(self, exchange: Exchange, work: Coroutine[Any, Any, None], *, prompt_param: str) -> None:
        """Runs an endpoint's work until it ends, the client disconnects or the server stops.

        Raises:
            APIError: The engine rejected the request or failed, or too many requests are in progress.
            ClientDisconnectedError: The client disconnected.
        """
        try:
            with self.admitted():
                await exchange.unless_abandoned(work, self.stopping, self.config.write_timeout_s)
        except LLMError as error:
            answer = from_llm_error(error, prompt_param=prompt_param)
            if answer.status >= 500:
                logger.exception("request %s failed", exchange.request_id)
            raise answer from error
        finally:
            work.close()  # of a refused request, it has not begun
