"""Callbacks of the training loop: progress, logs and curves. Subclass `Callback` to write your own."""

from llm.training.callbacks.answers import AnswerWriter
from llm.training.callbacks.base import Callback
from llm.training.callbacks.csv_log import CsvLogger
from llm.training.callbacks.log import JsonlLogger
from llm.training.callbacks.plot import LossPlot, plot_losses
from llm.training.callbacks.profiler import StepProfiler
from llm.training.callbacks.progress import ProgressBar
from llm.training.callbacks.report import ReportWriter
from llm.training.callbacks.samples import SampleWriter
from llm.training.callbacks.standard import check_log_targets, standard_callbacks
from llm.training.callbacks.trackers import TensorBoardLogger, WandbLogger

__all__ = [
    "AnswerWriter",
    "Callback",
    "CsvLogger",
    "JsonlLogger",
    "LossPlot",
    "ProgressBar",
    "ReportWriter",
    "SampleWriter",
    "StepProfiler",
    "TensorBoardLogger",
    "WandbLogger",
    "check_log_targets",
    "plot_losses",
    "standard_callbacks",
]
