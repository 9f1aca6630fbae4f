"""The callbacks that a run has unless a program passes its own."""

from collections.abc import Iterable

from llm.checkpoint import Run
from llm.data import BaseDataModule, PromptDataModule
from llm.settings.run import LogTarget, RunConfig
from llm.tokenization import BaseTokenizer
from llm.training.callbacks.base import Callback
from llm.training.callbacks.csv_log import CsvLogger
from llm.training.callbacks.log import JsonlLogger
from llm.training.callbacks.plot import LossPlot
from llm.training.callbacks.profiler import StepProfiler
from llm.training.callbacks.progress import ProgressBar
from llm.training.callbacks.report import ReportWriter
from llm.training.callbacks.samples import SampleWriter
from llm.training.callbacks.trackers import TensorBoardLogger, WandbLogger, required_package

_LOGGERS: dict[LogTarget, type[CsvLogger | TensorBoardLogger | WandbLogger]] = {
    "csv": CsvLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def check_log_targets(targets: Iterable[LogTarget]) -> None:
    """Checks that the packages of further logs are installed.

    Raises:
        MissingExtraError: One is not.
    """
    for target in targets:
        if target != "csv":
            required_package(target)


def standard_callbacks(
    config: RunConfig, run: Run, data: BaseDataModule, tokenizer: BaseTokenizer | None
) -> list[Callback]:
    """Returns the progress bar, the log and whatever else the settings ask for, in the order they depend on each other.

    Raises:
        MissingExtraError: A log of `training.log_to` needs a package that is not installed.
    """
    found: list[Callback] = [JsonlLogger(run)]
    is_drawn = isinstance(data, PromptDataModule)  # by the task itself, and written by `AnswerWriter`
    if tokenizer is not None and not is_drawn and (writer := SampleWriter.from_config(config, run, tokenizer, data)):
        found.append(writer)
    found += [_LOGGERS[target](run) for target in dict.fromkeys(config.training.log_to)]
    if config.training.profile_steps is not None:
        found.append(StepProfiler(run, *config.training.profile_steps))
    return [*found, LossPlot(run), ReportWriter(run), ProgressBar()]
