"""What Prometheus scrapes at `/metrics`; each app has a registry of its own."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llm.inference import Usage

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

# Name here → key of `AsyncEngine.stats()` and what it says.
_ENGINE_GAUGES = {
    "llm_requests_running": ("num_running", "Requests the engine works on."),
    "llm_requests_waiting": ("num_waiting", "Requests in the engine's queue."),
    "llm_queued_tokens": ("waiting_tokens", "Tokens of the requests in the engine's queue."),
    "llm_blocks_total": ("blocks_total", "Blocks of the KV cache."),
    "llm_blocks_free": ("blocks_free", "Blocks of the KV cache that no request holds."),
    "llm_blocks_cached": ("blocks_cached", "Blocks that a prompt which begins the same can use again."),
}
_ENGINE_COUNTERS = {
    "llm_preemptions": ("num_preemptions", "Requests sent back to the queue for want of blocks."),
    "llm_engine_steps": ("num_steps", "Steps of the engine."),
    "llm_scheduled_tokens": ("tokens_scheduled", "Tokens the model computed, recomputed ones among them."),
    "llm_prefix_cache_query_tokens": ("prefix_query_tokens", "Tokens of prompts looked up in the prefix cache."),
    "llm_prefix_cache_hit_tokens": ("prefix_hit_tokens", "Tokens of prompts found there, and not computed again."),
    "llm_draft_tokens": ("drafts_computed", "Tokens guessed and computed."),
    "llm_accepted_draft_tokens": ("drafts_accepted", "Guesses that came true."),
    "llm_blocks_copied": ("blocks_copied", "Blocks copied for choices of one prompt that part."),
}


class _EngineCollector(Collector):
    """Asks the engine at scrape time, so that nothing has to be kept in step."""

    def __init__(self, stats: Callable[[], Mapping[str, int]]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """One metric for each number the engine knows."""
        stats = self._stats()
        for name, (key, description) in _ENGINE_GAUGES.items():
            if key in stats:
                yield GaugeMetricFamily(name, description, value=stats[key])
        for name, (key, description) in _ENGINE_COUNTERS.items():
            if key in stats:
                yield CounterMetricFamily(name, description, value=stats[key])


class ServerMetrics:
    """The counters of one app."""

    def __init__(self, engine_stats: Callable[[], Mapping[str, int]]) -> None:
        """Args: engine_stats: The engine's numbers, empty while there is no engine."""
        registry = CollectorRegistry()
        self.requests = Counter("llm_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.in_flight = Gauge("llm_requests_in_flight", "Requests for text not answered yet.", registry=registry)
        self.prompt_tokens = Counter("llm_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.generation_tokens = Counter("llm_generation_tokens", "Tokens generated.", registry=registry)
        self.first_token_s = Histogram(
            "llm_time_to_first_token_seconds", "Arrival to first token.", buckets=_SECONDS, registry=registry
        )
        self.duration_s = Histogram(
            "llm_request_duration_seconds",
            "Arrival to the answer's end.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        registry.register(_EngineCollector(engine_stats))
        self._registry = registry

    def observe(self, route: str, status: int, elapsed_s: float) -> None:
        """Counts one answered request; `route` is the pattern, so that paths can't multiply the series."""
        self.requests.labels(route, str(status)).inc()
        self.duration_s.labels(route).observe(elapsed_s)

    def count_tokens(self, usage: Usage) -> None:
        """Adds one request's tokens."""
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.generation_tokens.inc(usage.completion_tokens)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
