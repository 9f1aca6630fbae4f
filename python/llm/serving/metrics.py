"""Prometheus metrics served at `/metrics`; each app has its own registry."""

import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as MetricCollector

from llm.inference import Collector, Usage
from llm.inference.outputs import ChoiceDelta
from llm.serving.answer_metrics import SECONDS, AnswerMetrics, ServedModel, VLLMCollector

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


# Metric name → key of `AsyncEngine.stats()` and description.
_ENGINE_GAUGES = {
    "llm_requests_running": ("num_running", "Requests running in the engine."),
    "llm_requests_waiting": ("num_waiting", "Requests waiting in the engine's queue."),
    "llm_queued_tokens": ("waiting_tokens", "Tokens of the requests waiting in the engine's queue."),
    "llm_blocks_total": ("blocks_total", "KV cache blocks."),
    "llm_blocks_free": ("blocks_free", "KV cache blocks that no request holds."),
    "llm_blocks_cached": ("blocks_cached", "KV cache blocks that a prompt with the same prefix can reuse."),
    "llm_adapters": ("num_adapters", "Adapters that requests may name."),
}
_ENGINE_COUNTERS = {
    "llm_preemptions": ("num_preemptions", "Requests preempted: returned to the queue because blocks ran out."),
    "llm_engine_steps": ("num_steps", "Engine steps."),
    "llm_scheduled_tokens": ("tokens_scheduled", "Tokens computed by the model, including recomputed ones."),
    "llm_prefix_cache_query_tokens": ("prefix_query_tokens", "Prompt tokens looked up in the prefix cache."),
    "llm_prefix_cache_hit_tokens": ("prefix_hit_tokens", "Prompt tokens found in the prefix cache and not recomputed."),
    "llm_draft_tokens": ("drafts_computed", "Draft tokens verified by the model."),
    "llm_accepted_draft_tokens": ("drafts_accepted", "Draft tokens accepted."),
    "llm_grammars_compiled": ("grammars_compiled", "Grammars compiled; one that is kept from before is not counted."),
    "llm_blocks_copied": ("blocks_copied", "KV cache blocks copied when choices of one prompt diverge."),
}


class _EngineCollector(MetricCollector):
    """Reads the engine's statistics at scrape time, so that no second copy can go stale."""

    def __init__(self, stats: Callable[[], Mapping[str, int]]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """Yields one metric for each of the engine's statistics."""
        stats = self._stats()
        for name, (key, description) in _ENGINE_GAUGES.items():
            if key in stats:
                yield GaugeMetricFamily(name, description, value=stats[key])
        for name, (key, description) in _ENGINE_COUNTERS.items():
            if key in stats:
                yield CounterMetricFamily(name, description, value=stats[key])


class ServerMetrics:
    """The metrics of one app.

    Args:
        engine_stats: Returns the engine's statistics, empty while no engine is loaded.
        served: The model of the metrics that are named as in vLLM.
    """

    def __init__(self, engine_stats: Callable[[], Mapping[str, int]], served: ServedModel) -> None:
        registry = CollectorRegistry()
        self.requests = Counter("llm_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.in_flight = Gauge("llm_requests_in_flight", "Generation requests in progress.", registry=registry)
        self.duration_s = Histogram(
            "llm_request_duration_seconds",
            "Time from arrival to the end of the answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("llm_prompt_tokens", "Prompt tokens of answered requests.", registry=registry)
        self.generation_tokens = Counter("llm_generation_tokens", "Tokens generated for requests.", registry=registry)
        self._token_bytes = Gauge(
            "llm_kv_cache_bytes_per_token",
            "Bytes of one token's keys and values in the cache, by their type.",
            ["dtype"],
            registry=registry,
        )
        self.answers = AnswerMetrics(registry)
        registry.register(_EngineCollector(engine_stats))
        counters = [(self.prompt_tokens, "prompt_tokens"), (self.generation_tokens, "generation_tokens")]
        registry.register(VLLMCollector(engine_stats, [*self.answers.vllm_names, *counters], served))
        self._registry = registry

    def observe(self, route: str, status: int, elapsed_s: float) -> None:
        """Counts one answered request; `route` is the route's pattern, which bounds the number of series."""
        self.requests.labels(route, str(status)).inc()
        self.duration_s.labels(route).observe(elapsed_s)

    def count_tokens(self, usage: Usage) -> None:
        """Adds the tokens of one request."""
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.generation_tokens.inc(usage.completion_tokens)

    def describe_cache(self, dtype: str, token_bytes: int) -> None:
        """Notes the type of the engine's cached keys and values, and the bytes of one token's."""
        self._token_bytes.labels(dtype).set(token_bytes)

    def exposition(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class Meter:
    """Measures one generating request from its arrival, without any work per token.

    Args:
        metrics: The metrics of the app.
        began_at: When the request arrived, by `time.perf_counter`.
    """

    def __init__(self, metrics: ServerMetrics, began_at: float) -> None:
        self._metrics = metrics
        self._began_at = began_at
        self._first_at = began_at
        self._scheduled_at = began_at

    def start(self, deltas: Iterable[ChoiceDelta]) -> float:
        """Notes the arrival of the first deltas and returns the seconds until then."""
        self._first_at = time.perf_counter()
        scheduled = (delta.scheduled_at for _, delta in deltas if delta.scheduled_at is not None)
        self._scheduled_at = min(scheduled, default=self._first_at)
        answers = self._metrics.answers
        answers.queue_s.observe(self._scheduled_at - self._began_at)
        answers.prefill_s.observe(self._first_at - self._scheduled_at)
        answers.first_token_s.observe(self._first_at - self._began_at)
        return self._first_at - self._began_at

    def end(self, collector: Collector) -> None:
        """Counts the tokens and the time of a request that has got a token."""
        now = time.perf_counter()
        self._metrics.count_tokens(collector.usage)
        self._metrics.answers.inference_s.observe(now - self._scheduled_at)
        self._metrics.answers.count(collector, now - self._began_at, now - self._first_at)
