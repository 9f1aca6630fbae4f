"""Starts and resumes runs: builds tokenizer, shards, model and loop from settings."""

import contextlib
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import torch

from llm.checkpoint import Checkpoint, Run, resolve, step_of
from llm.data import BatchLoader, PreferenceDataModule, TextDataModule
from llm.data.tokenize import mend_corpus
from llm.errors import ConfigError
from llm.models.device import resolve_device
from llm.settings.merge import Override, given_settings, load_run_config
from llm.settings.run import RunConfig
from llm.tokenization import BaseTokenizer, load_tokenizer
from llm.training.assembly import build_data, build_rows, build_task
from llm.training.branching import branch_for_decay
from llm.training.callbacks import AnswerWriter, Callback, check_log_targets, standard_callbacks
from llm.training.compilation import check_compiler, choose_compilation
from llm.training.distributed import Distributed, explains_lost_processes
from llm.training.engine import TrainingEngine
from llm.training.fine_tuning import after_encoding, before_encoding
from llm.training.float8 import describe_float8
from llm.training.grpo import GrpoTask
from llm.training.initial import initial_tokenizer, load_start_config
from llm.training.memory import explains_out_of_memory
from llm.training.parallel import check_unpacked
from llm.training.plan import Plan, describe, expected_flops
from llm.training.precision import autocast_dtype
from llm.training.preparation import RunText
from llm.training.prompts import prepare_prompts
from llm.training.reference import attach_blank, attach_reference
from llm.training.restarts import launcher_facts, was_begun_before
from llm.training.resumption import as_begun, changed_facts, check_resumable, checkpoint_to_resume
from llm.training.rows import mend, no_model, prepare_rows
from llm.training.signals import interrupts_at_once
from llm.training.space import adapter_notices, space_notices
from llm.training.tasks import LanguageModelingTask
from llm.training.teacher import check_teacher

Settings: TypeAlias = RunConfig | str | os.PathLike[str] | None


def launch(
    config: Settings,
    out: str | os.PathLike[str],
    *,
    overrides: Iterable[Override] = (),
    tokenizer: BaseTokenizer | None = None,
    callbacks: Sequence[Callback] | None = None,
    overwrite: bool = False,
) -> Checkpoint:
    """Starts a run, trains to the end and returns the last checkpoint.

    Args:
        config: Settings to start from, or a TOML file of them; `None` means the defaults. `load_run_config` merges the
            environment and `overrides` into them.
        out: The new directory of the run, or that of a run without a checkpoint.
        overrides: Settings as `section.field=value`, or as pairs of name and value.
        tokenizer: Replaces the tokenizer that `config.tokenizer` names or asks to train.
        callbacks: Callbacks that replace all of `standard_callbacks`, such as the progress bar and the log.
        overwrite: Whether to replace a run in `out`; only what that run wrote is removed.

    A process that `torchrun` started again after a failure resumes the run instead.

    Raises:
        ConfigError: Settings are unknown or contradictory, or `out` holds a run.
        DataError: The text is missing, or too short for one sample or batch.
        TrainingError: A loss or gradient is not finite.
    """
    overrides = list(overrides)
    settings, initial = load_start_config(config, overrides)
    start = _Start(Run(out), _join(settings), initial)
    start.given = given_settings(config, overrides)
    with start.held:
        if start.is_restart():
            return _go_on(start.run.read_config(), start, callbacks)
        with interrupts_at_once():
            start.distributed.main_first(lambda: _prepare(settings, start, tokenizer, overwrite))
        config = start.run.read_config()
        with start.explains_out_of_memory(config):
            return _engine(config, start, callbacks).fit()


@contextlib.contextmanager
def trial(
    config: Settings,
    *,
    overrides: Iterable[Override] = (),
    tokenizer: BaseTokenizer | None = None,
    callbacks: Sequence[Callback] = (),
) -> Iterator[TrainingEngine]:
    """Prepares a run as `launch` does, but in a temporary directory, and yields its engine before the first step."""
    overrides = list(overrides)
    settings, initial = load_start_config(config, overrides)
    if (world_size := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(f"a dry run uses one process, got {world_size}\nhint: leave out `torchrun` or `--nproc`")
    with tempfile.TemporaryDirectory(prefix="llm-trial-") as folder:
        start = _Start(Run(folder), _join(settings), initial)
        start.given, start.is_trial = given_settings(config, overrides), True
        with start.held:
            with interrupts_at_once():
                start.distributed.main_first(lambda: _prepare(settings, start, tokenizer, False))
            yield _engine(start.run.read_config(), start, callbacks)


def resume(
    path: str | os.PathLike[str],
    *,
    file: str | os.PathLike[str] | None = None,
    overrides: Iterable[Override] = (),
    callbacks: Sequence[Callback] | None = None,
    from_step: int | None = None,
) -> Checkpoint:
    """Resumes a run from its newest complete checkpoint, exactly as if the run had never stopped.

    A checkpoint whose files are damaged is passed over in favour of an older one, with a notice.

    Args:
        path: The run's directory.
        file: TOML with changed settings; only `max_steps` and a few others may change.
        overrides: Changed settings as `section.field=value`, or as pairs of name and value.
        callbacks: Callbacks that replace all of `standard_callbacks`, such as the progress bar and the log.
        from_step: Resume from the checkpoint of this step; newer checkpoints and lines of the log are removed once it
            is restored.

    Raises:
        CheckpointError: The directory holds no run, or all of its checkpoints are damaged.
        ConfigError: A changed setting would make the run a different run.
    """
    run = Run(path)
    old = run.read_config()
    new = as_begun(old, load_run_config(file, overrides, base=old))
    check_resumable(old, new, has_checkpoint=run.newest() is not None)
    start = _Start(run, _join(new))
    with start.held:
        return _go_on(new, start, callbacks, None if start.is_restart() else from_step)


def branch(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    step: int,
    *,
    file: str | os.PathLike[str] | None = None,
    overrides: Iterable[Override] = (),
    callbacks: Sequence[Callback] | None = None,
) -> Checkpoint:
    """Lets the learning rate of a stable run decay from one of its checkpoints, in a run of its own.

    Of several processes, the main one copies what the branch needs.

    Args:
        path: A run whose rate stays at its peak; it stays as it is.
        out: The new run's directory.
        step: The step of a checkpoint of `path`, from which the rate decays.
        file: TOML with settings of the branch, such as `training.max_steps`.
        overrides: Settings of the branch as `section.field=value`, or as pairs of name and value.
        callbacks: Callbacks that replace all of `standard_callbacks`, such as the progress bar and the log.

    Raises:
        ConfigError: The rate isn't stable at `step`, no checkpoint is of that step, or `out` holds a run.
        CheckpointError: The checkpoint is damaged, or there is no run.
    """
    overrides = list(overrides)
    start = _Start(Run(out), _join(load_run_config(file, overrides, base=Run(path).read_config())))
    with start.held:
        if not start.is_restart():
            with interrupts_at_once():
                start.distributed.main_first(lambda: branch_for_decay(path, out, step, overrides, file=file))
        return _go_on(start.run.read_config(), start, callbacks)


def _go_on(
    config: RunConfig, start: "_Start", callbacks: Sequence[Callback] | None, from_step: int | None = None
) -> Checkpoint:
    with interrupts_at_once():
        start.distributed.main_first(lambda: _reopen(config, start, from_step))
    step = start.agreed_step()
    # The weights that adapters belong to are in no checkpoint of the run.
    if (step is None or config.lora.rank is not None) and config.training.init_from is not None:
        start.initial = resolve(config.training.init_from)
    with start.explains_out_of_memory(config):
        return _engine(config, start, callbacks).fit(resume=True, from_step=step)


def _join(config: RunConfig) -> Distributed:
    return Distributed.start(config.training.device, config.training.process_timeout_s)


class _Start:
    """What the start of a run needs and holds until the end of training: the run's lock and the process group."""

    def __init__(self, run: Run, distributed: Distributed, initial: Checkpoint | None = None) -> None:
        self.run = run
        self.distributed = distributed
        self.initial = initial
        self.held = contextlib.ExitStack()
        self.held.callback(distributed.stop)
        self.held.enter_context(explains_lost_processes())
        self.notices: list[str] = []
        self.given: frozenset[str] = frozenset()
        self.step: int | None = None
        self.is_trial = False

    @property
    def facts(self) -> dict[str, Any]:
        """All facts besides the settings that affect a run's numbers."""
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "num_threads": torch.get_num_threads(),
            "world_size": self.distributed.world_size,
            "device": str(self.distributed.device),
            **launcher_facts(),
        }

    def explains_out_of_memory(self, config: RunConfig) -> contextlib.AbstractContextManager[None]:
        """Returns a context that names the settings to change where memory is not enough."""
        dtype = autocast_dtype(config.training.precision, self.distributed.device)
        return explains_out_of_memory(config, dtype, self.distributed.world_size, self.distributed.device.type)

    def is_restart(self) -> bool:
        """Returns whether `torchrun` started all processes of the run again; the main process knows."""
        [answer] = self.distributed.sum(self.distributed.is_main and was_begun_before(self.run))
        return answer > 0

    def agreed_step(self) -> int | None:
        """Returns the main process's `step` in every process."""
        own = self.step + 1 if self.distributed.is_main and self.step is not None else 0
        [agreed] = self.distributed.sum(own)
        return int(agreed) - 1 if agreed else None


def _reopen(config: RunConfig, start: _Start, from_step: int | None) -> None:
    """Chooses the checkpoint to resume from and writes the changed settings."""
    run = start.run
    start.held.enter_context(run.locked())
    checkpoint, start.notices = checkpoint_to_resume(run, from_step)
    start.step = None if checkpoint is None else step_of(checkpoint)
    if start.notices:
        start.notices.append(f"resuming from {checkpoint}")
    start.notices += changed_facts(run.last_facts(), start.facts)
    if config.data.kind not in ("synthetic", "prompt"):
        mend_data = _mend_text if config.data.kind == "text" else mend
        start.notices += mend_data(config, load_tokenizer(run.tokenizer), run.data)
    run.write_resumed(config, start.facts, start.step or 0)


def _mend_text(config: RunConfig, tokenizer: BaseTokenizer, directory: Path) -> list[str]:
    return mend_corpus(config.data, tokenizer, directory)


def _prepare(config: RunConfig, start: _Start, tokenizer: BaseTokenizer | None, overwrite: bool) -> None:
    """Trains or loads the tokenizer, tokenizes the text, then writes `run.json`, which makes the run exist.

    An old run is removed last, so that no mistake in the text or the settings costs it.
    """
    run = start.run
    start.held.enter_context(run.locked())
    run.check_free(overwrite)
    teacher = config.distillation.teacher
    run.check_not_read([start.initial, None if teacher is None else resolve(teacher)])
    if start.initial is not None:
        start.initial.check_adapter()
    with run.starting() as prepared:
        config = _write_parts(config, start, tokenizer, prepared)
        notice = run.take_over(prepared, overwrite)
    start.notices[:0] = [] if notice is None else [notice]
    run.create(config, start.facts)


def _write_parts(config: RunConfig, start: _Start, tokenizer: BaseTokenizer | None, run: Run) -> RunConfig:
    """Writes data and tokenizer into the folder of `run`, and returns the config with all that was chosen."""
    if config.data.kind != "synthetic":
        if config.training.task != "lm":
            kind = config.data.kind
            raise ConfigError(f"`training.task={config.training.task}` needs `data.kind=synthetic`, got `{kind}`")
        if start.initial is not None:
            tokenizer = initial_tokenizer(start.initial, config.tokenizer, tokenizer)
        write = {"text": _write_text, "prompt": _write_prompts}.get(config.data.kind, _write_rows)
        asked, config = config, write(config, start, tokenizer, run)
        start.notices += describe(asked, config)
    elif config.training.task == "lm":
        config = _with_vocabulary(config, config.model.vocab_size or 256)
    _try_out(config, run, start)
    return _with_compilation(config, run, start)


def _write_text(config: RunConfig, start: _Start, tokenizer: BaseTokenizer | None, run: Run) -> RunConfig:
    text = RunText(config.data, run)
    plan = Plan.of(config, start.given, text.num_bytes, start.distributed.device)
    config = plan.before_tokenizing(config)
    tokenizer = tokenizer or text.tokenizer(config.tokenizer)
    config = _with_vocabulary(config, tokenizer.vocab_size)
    text.tokenize(tokenizer)
    tokenizer.save(run.tokenizer)
    start.notices += [*text.notices, *TextDataModule(run.data, config.context_length, config.data).notices()]
    num_tokens = build_data(config, run).train_dataset().epoch_samples * config.context_length
    return plan.after_tokenizing(config, num_tokens)


def _write_rows(config: RunConfig, start: _Start, tokenizer: BaseTokenizer | None, run: Run) -> RunConfig:
    if start.initial is None or tokenizer is None:
        raise no_model()
    config = _with_vocabulary(before_encoding(config, start.given), tokenizer.vocab_size)
    start.notices += prepare_rows(config, run, tokenizer)
    tokenizer.save(run.tokenizer)
    config = after_encoding(config, start.given, build_rows(config, run.data))
    data = build_rows(config, run.data)
    data.validation_dataset()  # a held-out row that is too long must be found before the run exists
    start.notices += data.notices()
    return config


def _write_prompts(config: RunConfig, start: _Start, tokenizer: BaseTokenizer | None, run: Run) -> RunConfig:
    if start.initial is None or tokenizer is None:
        raise no_model()
    config = _with_vocabulary(config, tokenizer.vocab_size)
    tokenizer.save(run.tokenizer)
    return prepare_prompts(config, start.given, run, tokenizer)


def _try_out(config: RunConfig, run: Run, start: _Start) -> None:
    """Raises any error that the loop would raise before its first step, before `run.json` exists."""
    check_log_targets(config.training.log_to)
    device = resolve_device(config.training.device)
    autocast_dtype(config.training.precision, device)
    if config.training.compile == "on":
        check_compiler(device)
    world_size = start.distributed.world_size
    BatchLoader.for_training(build_data(config, run).train_dataset(), config.training, world_size)
    if config.distillation.teacher is not None:
        check_teacher(resolve(config.distillation.teacher), load_tokenizer(run.tokenizer), config.context_length)
    task = build_task(config, initial=start.initial)
    if world_size > 1 and config.training.sharding == "fsdp" and isinstance(task, LanguageModelingTask):
        check_unpacked(task.keeps_packed)
    with torch.device("meta"):
        task.build_model()


def _with_compilation(config: RunConfig, run: Run, start: _Start) -> RunConfig:
    """Decides whether blocks are compiled where `training.compile` leaves it open; a resumed run does as it began."""
    training, distributed = config.training, start.distributed
    if training.compile != "auto":
        return config
    is_on = False
    if training.task == "lm" and config.data.kind != "prompt":  # answers have other lengths in each step
        loader = BatchLoader.for_training(build_data(config, run).train_dataset(), training, distributed.world_size)
        flops = expected_flops(distributed.device, autocast_dtype(training.precision, distributed.device))
        total_steps = training.max_steps or training.epochs * loader.steps_per_epoch
        is_on, reason = choose_compilation(config, total_steps, distributed.device, flops * distributed.world_size)
        start.notices.append(f"training.compile={'on' if is_on else 'off'}: {reason}")
    chosen = msgspec.structs.replace(training, compile="on" if is_on else "off")
    return msgspec.structs.replace(config, training=chosen)


def _with_vocabulary(config: RunConfig, vocab_size: int) -> RunConfig:
    wanted = config.model.vocab_size or vocab_size
    if wanted < vocab_size:
        raise ConfigError(
            f"`model.vocab_size` must be at least the tokenizer's {vocab_size}, got {wanted}\n"
            "hint: omit it to use the tokenizer's"
        )
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, vocab_size=wanted))


def _engine(config: RunConfig, start: _Start, callbacks: Sequence[Callback] | None) -> TrainingEngine:
    run = start.run
    tokenizer = None if config.data.kind == "synthetic" else load_tokenizer(run.tokenizer)
    data = build_data(config, run)
    if isinstance(data, PreferenceDataModule) and start.is_trial:
        attach_blank(config, data)
    elif isinstance(data, PreferenceDataModule):
        attach_reference(config, run, data, start.distributed, start.initial)
    task = build_task(config, tokenizer, start.initial, run.data)
    if callbacks is None:
        callbacks = standard_callbacks(config, run, data, tokenizer)
        callbacks = [AnswerWriter(run, task), *callbacks] if isinstance(task, GrpoTask) else callbacks
    engine = TrainingEngine(
        config,
        task,
        data,
        run,
        distributed=start.distributed,
        tokenizer=tokenizer,
        notices=start.notices,
        callbacks=callbacks,
    )
    engine.notices += adapter_notices(engine.model)
    engine.notices += space_notices(run, engine.model, config.training.keep_checkpoints)
    if config.training.precision == "float8":
        engine.notices += (describe_float8(engine.model),)
    return engine
