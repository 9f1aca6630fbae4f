"""Evaluation: perplexity of texts, multiple choice and generated answers, scored through an engine."""

from llm.evaluation.report import Metric, Report, Result, report_table
from llm.evaluation.run import evaluate_files
from llm.settings.evaluation import EvaluationConfig

__all__ = ["EvaluationConfig", "Metric", "Report", "Result", "evaluate_files", "report_table"]
