"""Callbacks of the training loop: progress, logs and curves. Subclass `Callback` to write your own."""

from llm.training.callbacks.base import Callback
from llm.training.callbacks.log import JsonlLogger
from llm.training.callbacks.plot import LossPlot, plot_losses
from llm.training.callbacks.progress import ProgressBar

__all__ = ["Callback", "JsonlLogger", "LossPlot", "ProgressBar", "plot_losses"]
