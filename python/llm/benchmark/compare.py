"""Compares two reports, and calls a difference real only if chance hardly makes such repeats of one server."""

import itertools
import math
import random
import statistics
from collections.abc import Sequence

import msgspec
from rich.table import Table

from llm.benchmark.report import RATES, TIMES, Report
from llm.errors import ConfigError

ALPHA = 0.01
MIN_REPEATS = 5  # with fewer on each side, even repeats that don't overlap at all are no evidence at this level

COMPARED = (*(f"{name}_p{rank}_s" for name in TIMES for rank in (50, 99)), *RATES)
# What may differ between the two sides: the server, not the load on it.
_FREE = {"url", "model", "repeats", "seed", "timeout_s", "warmup"}
_MOST_SPLITS = 20_000


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of two reports.

    Attributes:
        metric: Name of the metric.
        before: Its median over the first report's repeats.
        after: Its median over the second report's repeats.
        p_value: How often chance alone makes ranks as different.
    """

    metric: str
    before: float
    after: float
    p_value: float

    @property
    def is_shown(self) -> bool:
        """Whether the repeats show a difference beyond their noise."""
        return self.p_value < ALPHA

    @property
    def verdict(self) -> str:
        """Returns the difference in words."""
        if not self.is_shown:
            return "no difference shown"
        change = (self.after / self.before - 1) * 100 if self.before else math.inf
        return f"{abs(change):.1f} % {'higher' if change > 0 else 'lower'}"


def compare(before: Report, after: Report) -> list[Difference]:
    """Compares every metric that both reports have.

    Raises:
        ConfigError: The reports measured different loads.
    """
    names = sorted((before.settings.keys() | after.settings.keys()) - _FREE)
    for name in names:
        left, right = before.settings.get(name), after.settings.get(name)
        if left != right:
            raise ConfigError(f"the reports measured different loads: `{name}` is {left!r} and {right!r}")
    return [
        Difference(
            metric=metric,
            before=statistics.median(before.values(metric)),
            after=statistics.median(after.values(metric)),
            p_value=rank_sum_p(before.values(metric), after.values(metric)),
        )
        for metric in COMPARED
        if before.values(metric) and after.values(metric)
    ]


def rank_sum_p(left: Sequence[float], right: Sequence[float]) -> float:
    """Returns the two-sided p-value of the Mann-Whitney test, by counting splits of the joined values.

    All splits are counted if there are few; otherwise a fixed random sample of them. Ties share their mean rank.

    Source: Mann and Whitney, "On a test of whether one of two random variables is stochastically larger than the
    other", 1947.
    """
    ranks = _ranks([*left, *right])
    size = len(left)
    middle = size * (len(ranks) + 1) / 2
    found = abs(sum(ranks[:size]) - middle)
    if math.comb(len(ranks), size) <= _MOST_SPLITS:
        sums = [sum(split) for split in itertools.combinations(ranks, size)]
    else:
        chance = random.Random(0)  # noqa: S311 - a fixed sample
        sums = [sum(ranks[:size]), *(sum(chance.sample(ranks, size)) for _ in range(_MOST_SPLITS))]
    return sum(abs(one - middle) >= found - 1e-9 for one in sums) / len(sums)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first: dict[float, int] = {}
    for position, value in enumerate(ordered, start=1):
        first.setdefault(value, position)
    return [first[value] + (ordered.count(value) - 1) / 2 for value in values]


def comparison_table(differences: list[Difference], num_repeats: int) -> Table:
    """Returns a table of the differences; `num_repeats` is the smaller number of repeats of the two reports."""
    table = Table(title="Medians over the repeats")
    for heading in ("", "before", "after", "p", "verdict"):
        table.add_column(heading, justify="right" if heading in ("before", "after", "p") else "left")
    for found in differences:
        is_rate = found.metric in RATES
        name = RATES[found.metric] if is_rate else found.metric.removesuffix("_s").replace("_", " ")
        numbers = (f"{value:.2f}" if is_rate else f"{value * 1e3:.2f} ms" for value in (found.before, found.after))
        table.add_row(name, *numbers, f"{found.p_value:.3f}", found.verdict)
    if num_repeats < MIN_REPEATS:
        table.caption = f"{num_repeats} repeats can't show a difference: run both with --repeats {MIN_REPEATS} or more"
    return table
