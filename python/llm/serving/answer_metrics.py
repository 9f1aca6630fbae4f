"""Metrics of generated answers, and the same under vLLM's names, which existing dashboards ask for."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector as MetricCollector

from llm.inference import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)

_VLLM_GAUGES = {
    "num_requests_running": ("num_running", "Requests running in the engine."),
    "num_requests_waiting": ("num_waiting", "Requests waiting in the engine's queue."),
}
_VLLM_COUNTERS = {
    "num_preemptions": ("num_preemptions", "Requests preempted because blocks ran out."),
    "prefix_cache_queries": ("prefix_query_tokens", "Prompt tokens looked up in the prefix cache."),
    "prefix_cache_hits": ("prefix_hit_tokens", "Prompt tokens found in the prefix cache."),
    "spec_decode_num_draft_tokens": ("drafts_computed", "Draft tokens verified by the model."),
    "spec_decode_num_accepted_tokens": ("drafts_accepted", "Draft tokens accepted."),
}


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """What routers ask of the model of a server.

    Attributes:
        name: The model's name.
        block_tokens: Tokens of a block of the KV cache.
        adapters: Returns the names of the adapters that requests may name.
    """

    name: str
    block_tokens: int = 16
    adapters: Callable[[], Sequence[str]] = tuple


class WeightedHistogram(MetricCollector):
    """A histogram that takes one value many times at the price of once: an answer's tokens at their mean time."""

    def __init__(self, name: str, description: str, bounds: tuple[float, ...], registry: CollectorRegistry) -> None:
        self._name, self._description = name, description
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float, times: int) -> None:
        """Adds `value` as often as `times` says."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[Metric]:
        """Yields the histogram."""
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._description, buckets=buckets, sum_value=self._sum)


class AnswerMetrics:
    """The times, lengths and ends of generated answers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, description, buckets=buckets, registry=registry)

        self.first_token_s = histogram(
            "llm_time_to_first_token_seconds", "Time from arrival to the first token.", SECONDS
        )
        self.queue_s = histogram("llm_queue_seconds", "Time from arrival to the first step.", SECONDS)
        self.prefill_s = histogram("llm_prefill_seconds", "Time from the first step to the first token.", SECONDS)
        self.inference_s = histogram("llm_inference_seconds", "Time from the first step to the last token.", SECONDS)
        self._whole_s = histogram("llm_answer_seconds", "Time from arrival to the last token.", SECONDS)
        self._decode_s = histogram("llm_answer_decode_seconds", "Time from the first token to the last.", SECONDS)
        self._per_token_s = histogram(
            "llm_time_per_output_token_seconds",
            "Mean time between tokens, once for each request.",
            _TOKEN_SECONDS,
        )
        self._between_tokens_s = WeightedHistogram(
            "llm_inter_token_seconds",
            "Mean time between tokens of a request, once for each of its tokens.",
            _TOKEN_SECONDS,
            registry,
        )
        self._prompt_tokens = histogram("llm_request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._generation_tokens = histogram("llm_request_generation_tokens", "Tokens generated for a request.", _TOKENS)
        self._ends = Counter(
            "llm_answers", "Answers by how they ended: stop, length or abort.", ["finished_reason"], registry=registry
        )

    @property
    def vllm_names(self) -> list[tuple[MetricCollector, str]]:
        """The metrics that vLLM has too, with vLLM's names; older dashboards ask for the time of a token by another."""
        return [
            (self.first_token_s, "time_to_first_token_seconds"),
            (self._whole_s, "e2e_request_latency_seconds"),
            (self.queue_s, "request_queue_time_seconds"),
            (self.prefill_s, "request_prefill_time_seconds"),
            (self._decode_s, "request_decode_time_seconds"),
            (self.inference_s, "request_inference_time_seconds"),
            (self._per_token_s, "request_time_per_output_token_seconds"),
            (self._between_tokens_s, "inter_token_latency_seconds"),
            (self._between_tokens_s, "time_per_output_token_seconds"),
            (self._prompt_tokens, "request_prompt_tokens"),
            (self._generation_tokens, "request_generation_tokens"),
            (self._ends, "request_success"),
        ]

    def count(self, collector: Collector, whole_s: float, decode_s: float) -> None:
        """Counts the answers to one request that has got a token."""
        usage, reasons = collector.usage, collector.finish_reasons
        self._whole_s.observe(whole_s)
        self._decode_s.observe(decode_s)
        self._prompt_tokens.observe(usage.prompt_tokens)
        self._generation_tokens.observe(usage.completion_tokens)
        for reason in reasons:
            self._ends.labels(reason or "abort").inc()
        gaps = usage.completion_tokens - len(reasons)  # answers to one request run side by side
        if gaps > 0:
            mean_s = decode_s * len(reasons) / gaps
            self._per_token_s.observe(mean_s)
            self._between_tokens_s.observe(mean_s, gaps)


class VLLMCollector(MetricCollector):
    """Tells what is measured under vLLM's names and labels, at scrape time.

    Args:
        engine_stats: Returns the engine's statistics, empty while no engine is loaded.
        renamed: Metrics with vLLM's names for them.
        served: The model's name, which is the value of the label `model_name`, and what routers ask of a server.
    """

    def __init__(
        self,
        engine_stats: Callable[[], Mapping[str, int]],
        renamed: Iterable[tuple[MetricCollector, str]],
        served: ServedModel,
    ) -> None:
        self._stats = engine_stats
        self._renamed = tuple(renamed)
        self._served = served
        self._labels = {"model_name": served.name, "engine": "0"}

    def collect(self) -> Iterable[Metric]:
        """Yields all metrics that vLLM has too."""
        for source, name in self._renamed:
            for family in source.collect():
                yield self._with_name(family, name)
        stats = self._stats()
        for name, (key, description) in _VLLM_GAUGES.items():
            if key in stats:
                yield self._with_name(GaugeMetricFamily(name, description, value=stats[key]), name)
        for name, (key, description) in _VLLM_COUNTERS.items():
            if key in stats:
                yield self._with_name(CounterMetricFamily(name, description, value=stats[key]), name)
        if stats.get("blocks_total"):
            used = 1 - stats["blocks_free"] / stats["blocks_total"]
            description = "Share of the KV cache in use; 1 is full."
            for name in ("kv_cache_usage_perc", "gpu_cache_usage_perc"):  # the name of now, and that of old dashboards
                yield self._with_name(GaugeMetricFamily(name, description, value=used), name)
            yield from self._facts(stats["blocks_total"])

    def _facts(self, num_blocks: int) -> Iterable[Metric]:
        """Yields what inference gateways read to match prefixes, and to find the servers that have an adapter."""
        cache = {"block_size": str(self._served.block_tokens), "num_gpu_blocks": str(num_blocks)}
        family = GaugeMetricFamily(
            "cache_config_info", "Blocks of the KV cache, and tokens of a block.", labels=[*cache]
        )
        family.add_metric([*cache.values()], 1)
        yield self._with_name(family, "cache_config_info")
        if not (adapters := self._served.adapters()):
            return
        # Gateways take a server with fewer than `max_lora` for one that loads any adapter it is asked for.
        loaded = {"max_lora": str(len(adapters)), "running_lora_adapters": ",".join(adapters)}
        names = [*loaded, "waiting_lora_adapters"]
        family = GaugeMetricFamily("lora_requests_info", "Adapters that requests may name, at this time.", labels=names)
        family.add_metric([*loaded.values(), ""], time.time())
        yield self._with_name(family, "lora_requests_info")

    def _with_name(self, family: Metric, name: str) -> Metric:
        renamed = Metric(f"vllm:{name}", family.documentation, family.type)
        for sample in family.samples:
            suffix = sample.name.removeprefix(family.name)
            renamed.add_sample(f"vllm:{name}{suffix}", {**sample.labels, **self._labels}, sample.value)
        return renamed
