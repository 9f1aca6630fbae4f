"""Training: the loop, its tasks and its callbacks."""

from llm.training.callbacks import (
    Callback,
    CsvLogger,
    JsonlLogger,
    LossPlot,
    ProgressBar,
    ReportWriter,
    SampleWriter,
    StepProfiler,
    TensorBoardLogger,
    WandbLogger,
    standard_callbacks,
)
from llm.training.dry_run import Forecast, dry_run
from llm.training.engine import TrainingEngine
from llm.training.launch import branch, launch, resume
from llm.training.metrics import FitStart, StepMetrics
from llm.training.record import RunRecord
from llm.training.replay import replay
from llm.training.runs import Comparison, compare_runs, list_runs, plot_runs
from llm.training.tasks import LanguageModelingTask, RegressionTask, Task

__all__ = [
    "Callback",
    "Comparison",
    "CsvLogger",
    "FitStart",
    "Forecast",
    "JsonlLogger",
    "LanguageModelingTask",
    "LossPlot",
    "ProgressBar",
    "RegressionTask",
    "ReportWriter",
    "RunRecord",
    "SampleWriter",
    "StepMetrics",
    "StepProfiler",
    "Task",
    "TensorBoardLogger",
    "TrainingEngine",
    "WandbLogger",
    "branch",
    "compare_runs",
    "dry_run",
    "launch",
    "list_runs",
    "plot_runs",
    "replay",
    "resume",
    "standard_callbacks",
]
