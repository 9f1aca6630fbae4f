"""Servers of one checkpoint as a Ray Serve application: `serve run llm.serving.ray:application model=runs/base`.

A request comes to an ingress, which reads its body, asks `PrefixRouter` for a replica and passes on what that replica's
ASGI app sends. A replica holds an engine and the app of `llm serve`, so answers, errors and endpoints are the same.

If a replica dies, a request whose answer has not begun goes to another one; a stream that has begun ends with an error
event.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from starlette.requests import Request
from starlette.responses import StreamingResponse

from llm.checkpoint import given_name
from llm.errors import ServerError
from llm.serving.app import App, create_app
from llm.serving.errors import unavailable
from llm.serving.http import Message
from llm.serving.logging import configure_logging
from llm.serving.protocol.common import encoder
from llm.serving.routes import error_format_of
from llm.serving.routing import PrefixTable, block_keys
from llm.serving.server import load_engine
from llm.settings.replicas import ReplicaConfig, replica_config

logger = logging.getLogger(__name__)

# Blocks that a router remembers of a replica: 8 million characters of prompts, 30 MB.
_REMEMBERED_BLOCKS = 2**17
_ATTEMPTS = 4
# The first check of a replica waits until its model is loaded.
_LOAD_TIMEOUT_S = 600
_POLICY = "llm.serving.ray:replicas_wanted"
_IN_FLIGHT, _WAITING = "in_flight", "waiting"
_PASSED_ON = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client")
_GONE = (RayActorError, DeploymentUnavailableError)


def application(arguments: Mapping[str, Any]) -> Application:
    """Builds the application.

    Args:
        arguments: The settings; see `llm.settings.replicas.replica_config`.

    Raises:
        ConfigError: A setting is unknown or out of range.
    """
    config = replica_config(arguments)
    limits = config.server.engine
    replica = serve.deployment(Replica).options(
        name="replica",
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        # The engine's own queue refuses what is too much, with an error that says so.
        max_ongoing_requests=limits.max_running_requests + limits.max_waiting_requests,
        graceful_shutdown_timeout_s=config.server.grace_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=_LOAD_TIMEOUT_S,
        request_router_config=RequestRouterConfig(request_router_class="llm.serving.ray:PrefixRouter"),
        **_scaling(config),
    )
    ingress = serve.deployment(Ingress).options(
        name="ingress", ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=4096, num_replicas=1
    )
    return ingress.bind(replica.bind(config), config.server.max_body_bytes)


def _scaling(config: ReplicaConfig) -> dict[str, Any]:
    if config.min_replicas == config.max_replicas:
        return {"num_replicas": config.min_replicas}
    policy = AutoscalingPolicy(policy_function=_POLICY)
    return {
        "num_replicas": None,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=config.aim,
            upscale_delay_s=15,
            downscale_delay_s=600,
            policy=policy,
        ),
    }


def replicas_wanted(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Returns how many replicas the engines' queues ask for: the one of two targets that asks for more decides."""
    metrics = context.aggregated_metrics or {}
    shares = [sum(values.values()) for name in (_IN_FLIGHT, _WAITING) if (values := metrics.get(name))]
    wanted = max(shares, default=context.total_num_requests / context.config.get_target_ongoing_requests())
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(max(math.ceil(wanted), least), most), {}


class Replica:
    """A server: an engine with the app of `llm serve`, without its HTTP."""

    def __init__(self, config: ReplicaConfig) -> None:
        configure_logging(config.server.log_level, config.server.log_format)
        self._config = config
        name = config.name or given_name(config.model)
        self._app: App = create_app(
            lambda: load_engine(config.model, config.server), model_name=name, config=config.server
        )
        self._started = asyncio.Lock()

    async def _ready(self) -> App:
        """Loads the engine once; nobody is answered before."""
        holder = self._app.services.engine
        async with self._started:
            if not holder.settled.is_set():
                await self._app.services.start()
                await holder.settled.wait()
        if holder.error is not None:
            raise holder.error
        return self._app

    async def check_health(self) -> None:
        """Loads the engine at first; later tells Ray to replace a replica whose engine failed or hangs.

        Raises:
            ServerError: The engine stopped.
            LLMError: The checkpoint can't be loaded.
        """
        health = (await self._ready()).services.engine.health
        if health.status == "failed":
            raise ServerError(f"the engine of this replica failed: {health.reason}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns this replica's load in replicas: 1 is a load that it is to have."""
        stats = self._app.services.engine.stats()
        running, waiting = stats.get("num_running", 0), stats.get("num_waiting", 0)
        return {_IN_FLIGHT: (running + waiting) / self._config.aim, _WAITING: waiting / self._config.target_waiting}

    async def answer(
        self,
        keys: tuple[int, ...],  # noqa: ARG002 - read by the router
        scope: dict[str, Any],
        body: bytes,
    ) -> AsyncIterator[list[Message]]:
        """Answers a request and yields what the app sends, each time all since the last.

        Args:
            keys: The prompt's blocks, for the router.
            scope: The request's ASGI scope.
            body: Its body.
        """
        app = await self._ready()
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        incoming: asyncio.Queue[Message] = asyncio.Queue()
        incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
        task = asyncio.create_task(app(scope, incoming.get, sent.put))
        task.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            is_done = False
            while not is_done:
                arrived = [await sent.get()]
                while not sent.empty():
                    arrived.append(sent.get_nowait())
                is_done = arrived[-1] is None
                if messages := [message for message in arrived if message is not None]:
                    yield messages
            await task
        finally:
            # The client left, or Ray stops: the app aborts the request and its blocks come back.
            incoming.put_nowait({"type": "http.disconnect"})
            await asyncio.wait({task})


class Ingress:
    """Receives requests over HTTP and passes on the answers of replicas.

    Args:
        replicas: The deployment of replicas.
        max_body_bytes: Where keeping a body stops; a replica refuses a longer one.
    """

    def __init__(self, replicas: DeploymentHandle, max_body_bytes: int) -> None:
        self._answer = replicas.answer.options(stream=True)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, request: Request) -> StreamingResponse:
        """Answers a request."""
        body = await self._body(request)
        messages = self._messages(dict(request.scope), body)
        start = await anext(messages)
        response = StreamingResponse(_bodies(messages), status_code=start["status"])
        response.raw_headers = [(bytes(name), bytes(value)) for name, value in start["headers"]]
        return response

    async def _body(self, request: Request) -> bytes:
        chunks: list[bytes] = []
        size_bytes = 0
        async for chunk in request.stream():
            if size_bytes <= self._max_body_bytes:
                chunks.append(chunk)
            size_bytes += len(chunk)
        return b"".join(chunks)

    async def _messages(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Message, None]:
        """Yields what a replica's app sends; asks another replica while nothing has been yielded."""
        asked = (block_keys(body), {name: scope[name] for name in _PASSED_ON if name in scope}, body)
        format_, request_id = error_format_of(scope["path"]), _request_id(scope)
        error = unavailable("no replica answers", "no_replica")
        for _ in range(_ATTEMPTS):
            has_begun = False
            answers = self._answer.remote(*asked)
            try:
                async for messages in answers:
                    for message in messages:
                        has_begun = True
                        yield message
                return
            except BackPressureError:
                error = unavailable("the queues of all replicas are full", "queue_full")
            except _GONE as problem:
                logger.warning("a replica died with a request: %s", type(problem).__name__)
                error = unavailable("The server of this answer is gone", "replica_died")
            except RayError as problem:
                logger.error("a replica failed with a request: %s", problem)
                error = unavailable("The server of this answer failed", "replica_failed")
            finally:
                answers.cancel()
            if has_begun:
                yield {"type": "http.response.body", "body": format_.event(error, request_id)}
                return
        payload = encoder.encode(format_.payload(error, request_id))
        headers = [*error.headers, (b"content-type", b"application/json"), (b"x-request-id", request_id.encode())]
        yield {"type": "http.response.start", "status": error.status, "headers": headers}
        yield {"type": "http.response.body", "body": payload}


async def _bodies(messages: AsyncGenerator[Message, None]) -> AsyncIterator[bytes]:
    async with aclosing(messages):  # a client that left is told to the replica at once
        async for message in messages:
            if body := message["body"]:
                yield body


def _request_id(scope: Mapping[str, Any]) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")


class PrefixRouter(RequestRouter):  # type: ignore[misc, unused-ignore]
    """Sends requests that begin the same to the same replica, unless it is too busy; see `llm.serving.routing`."""

    def initialize_state(self) -> None:
        """Begins with replicas of which nothing is known."""
        self._table = PrefixTable(_REMEMBERED_BLOCKS)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Returns the replicas, the best one first; Ray asks the next one if one is full."""
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # these are all; to ask again at once is no use
        queues = self.replica_queue_len_cache
        loads = {name: queues.get(replica.replica_id) or 0 for name, replica in replicas.items()}
        return [[replicas[name]] for name in self._table.ranked(_keys(pending_request), loads)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:  # noqa: ARG002
        """Notes which replica gets the request's blocks."""
        self._table.add(replica_id.unique_id, _keys(pending_request))

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forgets replicas that are gone."""
        super().update_replicas(replicas)
        self._table.keep(replica.replica_id.unique_id for replica in replicas)


def _keys(request: PendingRequest | None) -> tuple[int, ...]:
    """Returns the keys that `Ingress` passes as the first argument."""
    keys: tuple[int, ...] = ()
    if request is not None and request.args and isinstance(request.args[0], tuple):
        keys = request.args[0]
    return keys
