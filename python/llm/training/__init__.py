"""Training: the loop, its tasks and its callbacks."""

from llm.training.callbacks import (
    Callback,
    CsvLogger,
    JsonlLogger,
    LossPlot,
    ProgressBar,
    ReportWriter,
    SampleWriter,
    TensorBoardLogger,
    WandbLogger,
    standard_callbacks,
)
from llm.training.engine import TrainingEngine
from llm.training.launch import launch, resume
from llm.training.metrics import FitStart, StepMetrics
from llm.training.tasks import LanguageModelingTask, RegressionTask, Task

__all__ = [
    "Callback",
    "CsvLogger",
    "FitStart",
    "JsonlLogger",
    "LanguageModelingTask",
    "LossPlot",
    "ProgressBar",
    "RegressionTask",
    "ReportWriter",
    "SampleWriter",
    "StepMetrics",
    "Task",
    "TensorBoardLogger",
    "TrainingEngine",
    "WandbLogger",
    "launch",
    "resume",
    "standard_callbacks",
]
