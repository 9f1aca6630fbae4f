"""Builds the task and the samples that a run's settings ask for."""

from pathlib import Path
from typing import Any

import torch

from llm.checkpoint import Checkpoint, Run, resolve
from llm.data import (
    BaseDataModule,
    ChatDataModule,
    PreferenceDataModule,
    PromptDataModule,
    SyntheticDataModule,
    TextDataModule,
)
from llm.errors import ConfigError
from llm.models.device import resolve_device
from llm.settings.run import RunConfig
from llm.tokenization import BaseTokenizer
from llm.training.distillation import DistillationTask
from llm.training.grpo import GrpoTask
from llm.training.precision import autocast_dtype
from llm.training.preferences import PreferenceTask, RewardTask
from llm.training.tasks import LanguageModelingTask, RegressionTask, Task
from llm.training.teacher import Teacher


def build_task(
    config: RunConfig,
    tokenizer: BaseTokenizer | None = None,
    initial: Checkpoint | None = None,
    folder: Path | None = None,
) -> Task:
    """Returns the task of a run; see `LanguageModelingTask` for the arguments, and `Teacher` for the folder."""
    in_float8 = config.training.precision == "float8"
    if config.training.task == "regression":
        if in_float8:
            raise ConfigError("`training.precision=float8` needs `training.task=lm`, got `regression`")
        return RegressionTask(config.model)
    options: dict[str, Any] = {
        "attention_backend": config.training.attention_backend,
        "gradient_checkpointing": config.training.gradient_checkpointing,
        "initial": initial,
        "compiled": config.training.compile == "on",
        "float8": in_float8,
        "lora": None if config.lora.rank is None else config.lora,
        "keep_packed": resolve_device(config.training.device).type == "cpu",
    }
    if config.data.kind != "prompt" and resolve_device(config.training.device).type == "cpu":
        # GRPO computes values in fp32 on a CPU.
        options["frozen_dtype"] = autocast_dtype(config.training.precision, torch.device("cpu"))
    if config.data.kind == "preference":
        kind = RewardTask if config.preference.loss == "reward" else PreferenceTask
        return kind(config.model, config.preference, tokenizer, **options)
    if config.data.kind == "prompt":
        seed, start = config.training.seed, config.training.init_from
        return GrpoTask(config.model, config.grpo, tokenizer, seed=seed, start=start, **options)
    if config.distillation.teacher is not None:
        return DistillationTask(config.model, config.distillation, _teacher(config, folder), tokenizer, **options)
    return LanguageModelingTask(config.model, tokenizer, **options)


def _teacher(config: RunConfig, folder: Path | None) -> Teacher:
    training = config.training
    return Teacher(
        resolve(config.distillation.teacher or ""),
        config.distillation,
        config.model.vocab_size or 0,
        config.data.cache_directory or folder,
        dtype=autocast_dtype(training.precision, resolve_device(training.device)),
        attention_backend=training.attention_backend,
    )


def build_data(config: RunConfig, run: Run) -> BaseDataModule:
    """Returns the samples of a run whose data is prepared."""
    if config.data.kind == "text":
        return TextDataModule(run.data, config.context_length, config.data)
    if config.data.kind == "prompt":
        return PromptDataModule(run.data, config.data)
    if config.data.kind != "synthetic":
        return build_rows(config, run.data)
    return SyntheticDataModule(
        config.data.num_samples or 1024,
        config.training.task,
        vocab_size=config.model.vocab_size or 256,
        context_length=config.context_length,
        num_features=config.model.hidden_size,
        seed=config.training.seed,
    )


def build_rows(config: RunConfig, directory: Path) -> ChatDataModule:
    """Returns the samples of rows that were encoded into a directory."""
    if config.data.kind == "preference":
        return PreferenceDataModule(directory, config.context_length, config.data, config.preference.loss)
    return ChatDataModule(directory, config.context_length, config.data)
