"""The report of an evaluation: metrics of each file with every sample behind them."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from rich.table import Table

from llm.settings.evaluation import EvaluationConfig

Kind = Literal["perplexity", "multiple_choice", "generation"]


class Metric(msgspec.Struct, frozen=True):
    """A value with the standard error of its mean over the samples.

    Attributes:
        value: The metric.
        stderr: Its standard error; null for fewer than two samples, and for values that are no mean over samples.
    """

    value: float
    stderr: float | None = None

    @classmethod
    def mean(cls, values: Sequence[float]) -> "Metric":
        """Returns the mean over samples, with the standard error by the sample variance (with n - 1)."""
        number = len(values)
        mean = math.fsum(values) / number
        if number < 2:
            return cls(mean)
        variance = math.fsum((value - mean) ** 2 for value in values) / (number - 1)
        return cls(mean, math.sqrt(variance / number))


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The evaluation of one file.

    Attributes:
        data: The file.
        kind: What was measured.
        num_samples: Number of samples, or of windows of a text.
        duration_s: Seconds that the evaluation took.
        metrics: Values by name.
        samples: Each sample with what the model made of it.
    """

    data: str
    kind: Kind
    num_samples: int
    duration_s: float
    metrics: dict[str, Metric]
    samples: list[Any]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The evaluation of a model on several files.

    Attributes:
        model: The checkpoint.
        settings: How samples were presented.
        results: One result per file.
    """

    model: str
    settings: EvaluationConfig
    results: list[Result]

    def to_json(self) -> bytes:
        """Returns the report as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def report_table(report: Report) -> Table:
    """Returns the metrics of a report as a table for the terminal."""
    table = Table()
    for name in ("data", "samples", "metric", "value", "standard error"):
        table.add_column(name)
    for result in report.results:
        for name, metric in result.metrics.items():
            error = "" if metric.stderr is None else f"{metric.stderr:.4f}"
            table.add_row(result.data, str(result.num_samples), name, f"{metric.value:,.4f}", error)
    return table
