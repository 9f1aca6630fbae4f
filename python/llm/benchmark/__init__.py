"""Benchmarks of a server over HTTP: a load, its measurements, and the comparison of two reports."""

from llm.benchmark.compare import Difference, compare, comparison_table
from llm.benchmark.plot import plot_report
from llm.benchmark.report import Repeat, Report, read_report, report_table
from llm.benchmark.runner import run_benchmark

__all__ = [
    "Difference",
    "Repeat",
    "Report",
    "compare",
    "comparison_table",
    "plot_report",
    "read_report",
    "report_table",
    "run_benchmark",
]
