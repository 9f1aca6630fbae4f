"""From settings to a trained run: tokenizer, shards, model, loop."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from llm.data import BaseDataModule, BatchLoader, SyntheticDataModule, TextDataModule, read_documents, split_documents
from llm.errors import ConfigError
from llm.settings.merge import validated
from llm.settings.run import RunConfig, TokenizerConfig
from llm.tokenization import (
    BaseTokenizer,
    BPETokenizer,
    SimpleCharacterTokenizer,
    load_tokenizer,
    use_chat_template,
)
from llm.training.callbacks import Callback, JsonlLogger, LossPlot, ProgressBar
from llm.training.distributed import Distributed
from llm.training.engine import TrainingEngine
from llm.training.run import RunDirectory, check_resumable
from llm.training.tasks import LanguageModelingTask, RegressionTask, Task


def launch(
    config: RunConfig,
    out: str | os.PathLike[str],
    *,
    tokenizer: BaseTokenizer | None = None,
    callbacks: Sequence[Callback] | None = None,
) -> Path:
    """Starts a run and trains it to its end.

    Args:
        config: All settings.
        out: The run's directory; must not hold a run yet.
        tokenizer: Instead of the one `config.tokenizer` names or asks to train.
        callbacks: Instead of progress bar, log and picture.

    Returns:
        The last checkpoint.

    Raises:
        ConfigError: Contradictory settings, or `out` holds a run.
        DataError: No text, or less than a sample or a batch.
        TrainingError: A loss or gradient is not finite.
    """
    config = validated(config)
    run = RunDirectory(Path(out))
    distributed = Distributed.start(config.training.device)
    try:
        distributed.main_first(lambda: _prepare(config, run, tokenizer))
        engine = _engine(run.read_config(), run, distributed, callbacks)
        return engine.fit()
    finally:
        distributed.stop()


def resume(
    path: str | os.PathLike[str],
    config: RunConfig | None = None,
    *,
    callbacks: Sequence[Callback] | None = None,
) -> Path:
    """Goes on with a run from its newest complete checkpoint, exactly as if it had never stopped.

    Args:
        path: The run's directory.
        config: The run's own settings, changed in those that may change (`max_steps` and the like).
        callbacks: Instead of progress bar, log and picture.

    Returns:
        The last checkpoint.

    Raises:
        CheckpointError: There is no run.
        ConfigError: A setting that can't change on resume.
    """
    run = RunDirectory(Path(path))
    old = run.read_config()
    new = validated(config or old)
    check_resumable(old, new)
    distributed = Distributed.start(new.training.device)
    try:
        distributed.main_first(lambda: run.write_config(new, _facts()))
        return _engine(new, run, distributed, callbacks).fit(resume=True)
    finally:
        distributed.stop()


def read_run_config(path: str | os.PathLike[str]) -> RunConfig:
    """The settings of the run at `path`."""
    return RunDirectory(Path(path)).read_config()


def _prepare(config: RunConfig, run: RunDirectory, tokenizer: BaseTokenizer | None) -> None:
    """Trains or loads the tokenizer, tokenizes the text, then writes `run.json`: from there on the run exists."""
    run.check_free()
    if config.data.kind == "text":
        if config.training.task != "lm":
            raise ConfigError(f"`training.task={config.training.task}` needs `data.kind=synthetic`, got `text`")
        documents = read_documents(config.data.paths)
        train, validation = split_documents(documents, config.data.validation_fraction)
        tokenizer = tokenizer or _tokenizer(config.tokenizer, train)
        config = _with_vocabulary(config, tokenizer.vocab_size)
        TextDataModule.prepare(run.data, train, validation, tokenizer)
        tokenizer.save(run.path / "tokenizer")
    elif config.training.task == "lm":
        config = _with_vocabulary(config, config.model.vocab_size or 256)
    _try_out(config, run)
    run.create(config, _facts())


def _try_out(config: RunConfig, run: RunDirectory) -> None:
    """Raises what the loop would raise before its first step, while nothing says yet that a run is here."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    BatchLoader.for_training(_data(config, run).train_dataset(), config.training, world_size)
    with torch.device("meta"):
        _task(config, None).build_model()


def _tokenizer(config: TokenizerConfig, train: Sequence[str]) -> BaseTokenizer:
    if config.path is not None:
        tokenizer = load_tokenizer(config.path)
    elif config.kind == "character":
        tokenizer = SimpleCharacterTokenizer.train("".join(train))
    else:
        tokenizer = BPETokenizer.train_from_iterator(train, vocab_size=config.vocab_size, pattern=config.pattern)
    if config.chat_template is not None:
        use_chat_template(tokenizer, config.chat_template)
    return tokenizer


def _with_vocabulary(config: RunConfig, vocab_size: int) -> RunConfig:
    wanted = config.model.vocab_size or vocab_size
    if wanted < vocab_size:
        raise ConfigError(
            f"`model.vocab_size` must be at least the tokenizer's {vocab_size}, got {wanted}\n"
            "hint: leave it out to take the tokenizer's"
        )
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, vocab_size=wanted))


def _engine(
    config: RunConfig, run: RunDirectory, distributed: Distributed, callbacks: Sequence[Callback] | None
) -> TrainingEngine:
    tokenizer = load_tokenizer(run.path / "tokenizer") if config.data.kind == "text" else None
    return TrainingEngine(
        config,
        _task(config, tokenizer),
        _data(config, run),
        run,
        distributed=distributed,
        tokenizer=tokenizer,
        callbacks=[JsonlLogger(run), LossPlot(run), ProgressBar()] if callbacks is None else callbacks,
    )


def _task(config: RunConfig, tokenizer: BaseTokenizer | None) -> Task:
    if config.training.task == "regression":
        return RegressionTask(config.model)
    return LanguageModelingTask(
        config.model,
        tokenizer,
        attention_backend=config.training.attention_backend,
        gradient_checkpointing=config.training.gradient_checkpointing,
    )


def _data(config: RunConfig, run: RunDirectory) -> BaseDataModule:
    if config.data.kind == "text":
        return TextDataModule(run.data, config.context_length, config.data.num_samples)
    return SyntheticDataModule(
        config.data.num_samples or 1024,
        config.training.task,
        vocab_size=config.model.vocab_size or 256,
        context_length=config.context_length,
        num_features=config.model.hidden_size,
        seed=config.training.seed,
    )


def _facts() -> dict[str, Any]:
    """What else decides a run's numbers."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "num_threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }
