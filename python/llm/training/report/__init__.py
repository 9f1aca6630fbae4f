"""The page that shows a run: curves, samples, settings and machine in one file without outside parts."""

from llm.training.report.page import write_report

__all__ = ["write_report"]
