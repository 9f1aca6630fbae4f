"""What a benchmark measured: each request, percentiles and rates of each repeat, and their table."""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from llm.errors import DataError
from llm.settings.benchmark import ServingBenchmark

PERCENTILES = (50, 90, 99)
TIMES = {
    "ttft": "Time to the first token",
    "tpot": "Time per token after the first",
    "itl": "Time between two events",
    "e2e": "Whole answer",
}
RATES = {
    "requests_per_s": "Requests per second",
    "output_tokens_per_s": "Output tokens per second",
    "goodput_per_s": "Good answers per second",
}


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A request. Times count from its arrival, in an open loop also while the client was late.

    Attributes:
        lag_s: Seconds by which the client sent the request too late.
        ttft_s: Seconds to the first token.
        e2e_s: Seconds to the end of the answer.
        gaps_s: Seconds between events with text.
        prompt_tokens: Tokens of the prompt, from the server's usage.
        output_tokens: Tokens of the answer, from the server's usage.
        error: Why the request failed.
    """

    lag_s: float = 0.0
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    gaps_s: list[float] = []
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None for an answer of one token."""
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the load.

    Attributes:
        duration_s: Seconds from the first arrival to the end of the last answer.
        metrics: Percentiles of times, rates and counts by name.
        errors: How often each error occurred.
        requests: The requests.
    """

    duration_s: float
    metrics: dict[str, float]
    errors: dict[str, int]
    requests: list[Measured]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark's settings and repeats; `settings` leaves the API key out."""

    model: str
    settings: dict[str, Any]
    repeats: list[Repeat]

    def values(self, metric: str) -> list[float]:
        """Returns a metric of each repeat that has it."""
        return [repeat.metrics[metric] for repeat in self.repeats if metric in repeat.metrics]


def summarized(requests: list[Measured], duration_s: float, benchmark: ServingBenchmark) -> Repeat:
    """Returns a repeat with its metrics."""
    done = [request for request in requests if request.error is None]
    times = {
        "ttft": [request.ttft_s for request in done],
        "tpot": [request.tpot_s for request in done if request.tpot_s is not None],
        "itl": [gap for request in done for gap in request.gaps_s],
        "e2e": [request.e2e_s for request in done],
    }
    metrics: dict[str, float] = {}
    for name, values in times.items():
        metrics |= _percentiles(name, values)
    metrics |= {
        "requests_per_s": len(done) / duration_s,
        "output_tokens_per_s": sum(request.output_tokens for request in done) / duration_s,
        "goodput_per_s": sum(_is_good(request, benchmark) for request in done) / duration_s,
        "prompt_tokens": sum(request.prompt_tokens for request in done),
        "output_tokens": sum(request.output_tokens for request in done),
        "lag_max_s": max((request.lag_s for request in requests), default=0.0),
    }
    errors = Counter(request.error for request in requests if request.error is not None)
    return Repeat(duration_s=duration_s, metrics=metrics, errors=dict(errors), requests=requests)


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return {f"{name}_mean_s": statistics.fmean(values)} | {f"{name}_p{rank}_s": cuts[rank - 1] for rank in PERCENTILES}


def _is_good(request: Measured, benchmark: ServingBenchmark) -> bool:
    """Whether an answer kept all limits that are set."""
    limits = (
        (request.ttft_s, benchmark.max_ttft_s),
        (request.tpot_s or 0.0, benchmark.max_tpot_s),
        (request.e2e_s, benchmark.max_e2e_s),
    )
    return all(limit is None or value <= limit for value, limit in limits)


def read_report(path: str | Path) -> Report:
    """Reads a report that `llm bench serve --output` wrote.

    Raises:
        DataError: The file can't be read as a report.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path} can't be read as a report of `llm bench serve`: {error}") from error


def report_table(report: Report) -> Table:
    """Returns a table of times and rates, each the median over the repeats."""
    table = Table(title=f"{report.model} at {report.settings['url']}, median of {len(report.repeats)} repeats")
    for heading in ("", "mean", *(f"p{rank}" for rank in PERCENTILES)):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, title in TIMES.items():
        cells = [report.values(f"{name}_{part}_s") for part in ("mean", *(f"p{rank}" for rank in PERCENTILES))]
        table.add_row(title, *(f"{statistics.median(values) * 1e3:.1f} ms" if values else "-" for values in cells))
    table.add_section()
    for name, title in RATES.items():
        table.add_row(title, f"{statistics.median(report.values(name)):.2f}")
    num_errors = sum(sum(repeat.errors.values()) for repeat in report.repeats)
    table.add_row("Failed requests", str(num_errors))
    table.add_row("Most that the client was late", f"{max(report.values('lag_max_s')) * 1e3:.1f} ms")
    return table
