"""Training: the loop, its tasks and its callbacks."""

from llm.training.callbacks import Callback, JsonlLogger, LossPlot, ProgressBar
from llm.training.engine import TrainingEngine
from llm.training.launch import launch, resume
from llm.training.metrics import FitStart, StepMetrics
from llm.training.tasks import LanguageModelingTask, RegressionTask, Task

__all__ = [
    "Callback",
    "FitStart",
    "JsonlLogger",
    "LanguageModelingTask",
    "LossPlot",
    "ProgressBar",
    "RegressionTask",
    "StepMetrics",
    "Task",
    "TrainingEngine",
    "launch",
    "resume",
]
