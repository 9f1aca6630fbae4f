"""What a run would take, found out by its first steps in a temporary directory."""

import contextlib
import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch import Tensor

from llm.models import DecoderModel
from llm.models.costs import MemoryEstimate, estimate_memory
from llm.settings.merge import Override
from llm.settings.run import RunConfig
from llm.tokenization import BaseTokenizer
from llm.training.callbacks import Callback
from llm.training.engine import TrainingEngine
from llm.training.launch import Settings, trial
from llm.training.metrics import FitStart, StepMetrics

_PROBED_STEPS = 3
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Forecast:
    """What a run takes.

    Attributes:
        config: All settings, those that were left to the data filled in.
        num_parameters: Number of trainable parameters.
        total_steps: Number of optimizer steps.
        targets: Number of targets, such as tokens, over all steps.
        unit: What the targets are.
        passes: Passes over the training data.
        memory: Estimate for each device; None for a model that is no `DecoderModel`.
        probed_memory_bytes: What the first steps took: peak of allocated memory on a GPU, otherwise resident memory.
        checkpoint_bytes: Size of one checkpoint.
        step_s: Seconds of a step.
        validation_s: Seconds of a validation, estimated from a step.
        mfu: Model FLOPs utilization in the first steps; None if unknown.
        device: Device and number type.
    """

    config: RunConfig
    num_parameters: int
    total_steps: int
    targets: int
    unit: str
    passes: float
    memory: MemoryEstimate | None
    probed_memory_bytes: int | None
    checkpoint_bytes: int
    step_s: float
    validation_s: float
    mfu: float | None
    device: str

    @property
    def num_validations(self) -> int:
        """Number of validations, the one at the end among them."""
        return -(-self.total_steps // self.config.training.validate_every)

    @property
    def total_s(self) -> float:
        """Seconds of the whole run without checkpoints and samples."""
        return self.total_steps * self.step_s + self.num_validations * self.validation_s

    def lines(self) -> list[str]:
        """Returns the forecast in words."""
        training = self.config.training
        speed = self.targets / self.total_steps / self.step_s
        mfu = "" if self.mfu is None else f", MFU {self.mfu:.0%}"
        kept = min(training.keep_checkpoints, -(-self.total_steps // training.checkpoint_every))
        rows = {
            "parameters": f"{self.num_parameters:,}",
            "device": self.device,
            "steps": f"{self.total_steps:,} of {training.batch_size} samples",
            self.unit: f"{self.targets:,} ({self.passes:.2f} passes over the data)",
            "memory": self._memory_words(),
            "checkpoint": f"{_size(self.checkpoint_bytes)}, up to {kept} kept: {_size(kept * self.checkpoint_bytes)}",
            "speed": f"{speed:,.0f} {self.unit}/s, {1e3 * self.step_s:,.0f} ms a step{mfu}",
            "time": f"about {_clock(self.total_s)}, of which {self.num_validations} validations "
            f"{_clock(self.num_validations * self.validation_s)}",
        }
        return [f"{name:<12}{value}" for name, value in rows.items()]

    def _memory_words(self) -> str:
        probed = "" if self.probed_memory_bytes is None else f"{_size(self.probed_memory_bytes)} in the first steps"
        if self.memory is None:
            return probed or "unknown"
        parts = ("weights", "gradients", "optimizer", "activations")
        words = ", ".join(f"{name} {_size(getattr(self.memory, name))}" for name in parts)
        return f"about {_size(self.memory.total)} ({words}); {probed}"


class _Enough(Exception):  # noqa: N818 (it is no error)
    """Ends the probe."""


class _Probe(Callback):
    """Times the steps after the first, which also pays for what is done once."""

    def __init__(self) -> None:
        self.steps_per_batch = 1
        self.times: list[float] = []
        self.last: StepMetrics | None = None

    def on_fit_start(self, start: FitStart) -> None:  # noqa: ARG002
        self.times.append(time.perf_counter())

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:  # noqa: ARG002
        self.times.append(time.perf_counter())
        self.last = metrics
        # Whole batches, where several steps share one that takes time to make.
        if metrics.step > _PROBED_STEPS and metrics.step % self.steps_per_batch == 1 % self.steps_per_batch:
            raise _Enough

    @property
    def step_s(self) -> float:
        first = 1 if len(self.times) > 2 else 0
        return (self.times[-1] - self.times[first]) / (len(self.times) - 1 - first)


def dry_run(
    config: Settings = None, *, overrides: Iterable[Override] = (), tokenizer: BaseTokenizer | None = None
) -> Forecast:
    """Prepares a run in a temporary directory, trains its first steps, and returns what the whole of it would take.

    Args:
        config: As in `launch`.
        overrides: As in `launch`.
        tokenizer: As in `launch`.

    Raises:
        LLMError: Whatever would end the run at its start.
    """
    probe = _Probe()
    with trial(config, overrides=overrides, tokenizer=tokenizer, callbacks=[probe]) as engine:
        probe.steps_per_batch = engine.task.steps_per_batch
        with contextlib.suppress(_Enough):
            engine.fit()
        return _forecast(engine, probe)


def _forecast(engine: TrainingEngine, probe: _Probe) -> Forecast:
    assert probe.last is not None  # noqa: S101 (a run has at least one step)
    config, settings = engine.config, engine.config.training
    targets = probe.last.targets // probe.last.step
    task = engine.task
    held_out = 0 if engine.validation is None else len(engine.validation)
    return Forecast(
        config=config,
        num_parameters=sum(parameter.numel() for parameter in engine.model.parameters()),
        total_steps=engine.total_steps,
        targets=engine.total_steps * targets,
        unit=task.unit,
        passes=engine.total_steps / task.steps_per_batch * settings.batch_size / len(engine.loader.dataset),
        memory=_memory(engine),
        probed_memory_bytes=probe.last.memory_bytes,
        checkpoint_bytes=_checkpoint_bytes(engine),
        step_s=probe.step_s,
        validation_s=held_out / settings.batch_size * probe.step_s * task.validation_share,
        mfu=probe.last.mfu,
        device=f"{engine.distributed.device}, {str(engine.dtype).removeprefix('torch.')}",
    )


def _memory(engine: TrainingEngine) -> MemoryEstimate | None:
    if not isinstance(engine.model, DecoderModel):
        return None
    settings = engine.config.training
    passes = settings.gradient_accumulation_steps * engine.distributed.world_size
    estimate = estimate_memory(
        engine.model.config,
        -(-settings.batch_size * engine.task.sequences_per_sample // passes),
        engine.config.context_length,
        engine.dtype,
        gradient_checkpointing=settings.gradient_checkpointing,
        device=engine.distributed.device.type,
    )
    return dataclasses.replace(estimate, optimizer=_optimizer_bytes(engine))


def _checkpoint_bytes(engine: TrainingEngine) -> int:
    """Returns the bytes of weights and optimizer state, which are all but a few KiB of a checkpoint."""
    return _num_bytes(engine.model.parameters()) + _optimizer_bytes(engine)


def _optimizer_bytes(engine: TrainingEngine) -> int:
    states: list[dict[str, Any]] = list(engine.optimizer.state.values())
    return _num_bytes(value for state in states for value in state.values() if isinstance(value, Tensor))


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size(num_bytes: float) -> str:
    power = 0
    while num_bytes >= 1024 and power < len(_UNITS) - 1:
        num_bytes, power = num_bytes / 1024, power + 1
    return f"{num_bytes:.3g} {_UNITS[power]}"


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else str(timedelta(seconds=round(seconds)))
