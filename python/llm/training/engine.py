"""The training loop."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function

from llm.checkpoint import Checkpoint, Run, step_of
from llm.data import BaseDataModule, Batch, BatchLoader, in_order
from llm.errors import TrainingError
from llm.settings.run import RunConfig
from llm.tokenization import BaseTokenizer
from llm.training.allocator import kept_memory
from llm.training.best import BestLoss
from llm.training.callbacks import Callback
from llm.training.distributed import Distributed
from llm.training.dumps import BadStep, check_weights, dump, not_finite
from llm.training.meter import Meter, elapsed_at
from llm.training.metrics import FitStart, StepMetrics, means_of
from llm.training.optim import build_optimizer, clip_gradients, set_learning_rate
from llm.training.parallel import ParallelModel
from llm.training.precision import autocast, autocast_dtype
from llm.training.saving import CheckpointSaver, TrainedParts
from llm.training.schedules import Schedule
from llm.training.seeds import seed_step
from llm.training.signals import Interrupted, StopRequest, signal_of
from llm.training.tasks import Task

# The loss scale halves at each skipped step, from 65,536 to 1 in 16 steps; more skips are not a warm-up.
_MAX_SKIPS_IN_A_ROW = 20


@dataclass(frozen=True)
class _BatchSums:
    """A batch's global mean loss, targets, their bytes of text, and means of auxiliary losses by targets."""

    loss: float
    num_targets: float
    num_positions: float
    num_bytes: float
    auxiliary: dict[str, float]


class TrainingEngine:
    """Trains a task's model on a data module's samples into a run directory.

    A resumed run is bit-identical to an uninterrupted one on the same machine with equal numbers of threads and
    processes, because the samples, learning rate and random numbers of a step depend only on the seed and the step.

    Args:
        config: All settings; the loop reads `training`, `optimizer` and `generation`.
        task: The model and its loss.
        data: The samples.
        run: The run that stores checkpoints; its `run.json` must exist.
        distributed: This process and its device.
        tokenizer: The tokenizer to save in every checkpoint, so that checkpoints can be served.
        callbacks: Callbacks, called in the main process only unless they ask for all.
        notices: What callbacks should tell the user about this start.

    Raises:
        DataError: There are fewer samples than a batch, or a batch has fewer samples than devices × passes.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        data: BaseDataModule,
        run: Run,
        *,
        distributed: Distributed | None = None,
        tokenizer: BaseTokenizer | None = None,
        callbacks: Sequence[Callback] = (),
        notices: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.task = task
        self.run = run
        self.distributed = distributed or Distributed.start(config.training.device, config.training.process_timeout_s)
        self.callbacks = tuple(one for one in callbacks if self.distributed.is_main or one.in_all_processes)
        settings, device = config.training, self.distributed.device
        self.accumulation = settings.gradient_accumulation_steps
        self.loader = BatchLoader.for_training(data.train_dataset(), settings, self.distributed.world_size)
        if config.data.log_samples:
            run.data.mkdir(parents=True, exist_ok=True)
            self.loader.log_file = run.data / f"samples.rank{self.distributed.rank}.jsonl"
        self.validation = data.validation_dataset()
        self.total_steps = settings.max_steps or settings.epochs * self.loader.steps_per_epoch * task.steps_per_batch
        self._seed(-1)
        self.dtype = autocast_dtype(settings.precision, device)
        gathered = task.gathered_dtype(self.dtype, device)
        self.parallel = ParallelModel(task.build_model(), self.distributed, settings.sharding, gathered)
        self.model = self.parallel.model
        self._parameters = tuple(self.model.parameters())
        is_one_pass = self.accumulation * self.distributed.world_size == 1 and type(task).batches is Task.batches
        self.optimizer = build_optimizer(self.model, config.optimizer, self.dtype, is_one_pass=is_one_pass)
        self.schedule = Schedule.of(config.optimizer, self.total_steps, settings.batch_size * config.context_length)
        self.notices = (*notices, *self.schedule.notices())
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        parts = TrainedParts(self.model, self.optimizer, self.scaler, tokenizer)
        self.saver = CheckpointSaver(config, run, self.distributed, parts)
        self.step = 0
        self.skipped_steps = self._skips_in_a_row = 0
        self._parts: list[Batch] = []
        self._last_validated = -1
        self._validation_due = False
        self.best = BestLoss()
        self._stop = StopRequest()
        self._stop_votes = 0.0
        self.meter = Meter.of(self.model, config.context_length, self.total_steps, self.distributed, self.dtype)

    def fit(self, resume: bool = False, from_step: int | None = None) -> Checkpoint:
        """Trains to the last step and returns the newest checkpoint.

        Ctrl-C or SIGTERM in any process finishes the current step, saves a checkpoint and raises `Interrupted`, a
        `KeyboardInterrupt`, in all processes. A validation in progress ends early; the resumed run repeats it.

        Args:
            resume: Whether to resume from the run's newest complete checkpoint.
            from_step: Resume from the checkpoint of this step instead; newer ones are removed once it is restored.

        Raises:
            CheckpointError: The checkpoint to resume from is damaged.
            TrainingError: A loss or gradient is not finite.
        """
        is_finished = resume and self._restore(from_step) and self._is_done() and not self._validation_due
        self._call_start()
        try:
            if not is_finished:
                with self._stop, self.saver, kept_memory(self.distributed.device):
                    self._train()
        finally:
            for callback in self.callbacks:
                callback.on_fit_end()
        return self.run.checkpoint(self.step)

    def _train(self) -> None:
        if self._validation_due:
            self._validate()
            self._checkpoint(again=not self._validation_due)
        while not self._is_done() and not self._must_stop():
            self._advance()
        self._validation_due |= self.step == self.total_steps and self._last_validated != self.step
        if not self._must_stop():
            self._validate_and_checkpoint(force=True)
        self._checkpoint()
        self._announce_checkpoints(wait=True)
        if not self._is_done() or self._validation_due:
            raise Interrupted(self._stop.number or signal_of(self._stop_votes))
        for callback in self.callbacks if self.step < self.total_steps else ():
            callback.on_early_stop(self.step, self.best)

    def validate(self) -> dict[str, float]:
        """Returns the loss over the validation set, for text also bits per byte, and the loss of each of its sources.

        The result is empty without a validation set, and after a signal, which ends the validation early.
        """
        if self.validation is None:
            return {}
        self.model.eval()
        names = self.validation.source_names
        sums = np.zeros(3 + 2 * len(names) + 2 * len(self.task.metric_names))
        per_pass = self.config.training.batch_size // self.loader.parts
        rank, world_size = self.distributed.rank, self.distributed.world_size
        filler = self.validation.batch(np.arange(1))
        self._prepare_task(in_order(self.validation, per_pass, rank, world_size), filler)
        with torch.no_grad():
            batches = in_order(self.validation, per_pass, rank, world_size)
            for batch, counts in self.parallel.in_step(batches, filler, lambda: self._stop.vote):
                moved = batch.to(self.distributed.device)
                with autocast(self.distributed.device, self.dtype):
                    loss_sum = float(self.task.loss_sum(self.model, moved))
                if not counts:
                    continue
                by_source = self.task.sums_by_source(batch, len(names)) if names else ()
                counted = (self.task.count_targets(batch), self.task.count_bytes(batch))
                sums += [loss_sum, *counted, *by_source, *self.task.metric_sums(batch)]
        self.model.train()
        *totals, self._stop_votes = self.distributed.sum(*sums, self._stop.vote)
        self._validation_due = self._stop_votes > 0
        if self._validation_due:
            return {}
        keys = [f"validation_loss/{name}" for name in names]
        further = [f"validation_{name}" for name in self.task.metric_names]
        end = 3 + 2 * len(names)
        found = self.task.validation_metrics(*totals[:3])
        return found | means_of(keys, totals[3:end]) | means_of(further, totals[end:])

    def _prepare_task(self, parts: Iterable[Batch], filler: Batch) -> None:
        """Lets the task compute what the losses of all batches of this process need, before the first pass."""
        if type(self.task).prepare is Task.prepare:
            return
        device = self.distributed.device
        own = self.parallel.shared(parts, lambda: self.task.loss_sum(self.model, filler.to(device)))
        with torch.no_grad(), autocast(device, self.dtype):
            self.task.prepare(self.model, (part.to(device) for part in own))

    def _advance(self) -> None:
        """Runs one optimizer step, then any validation, checkpoint and logging that is due."""
        self._announce_checkpoints()
        metrics = self._train_step()
        should_log = self.step % self.config.training.log_every == 0 or self.step == self.total_steps
        for callback in self.callbacks:
            callback.on_step_end(metrics, should_log)
        if self._validate_and_checkpoint(force=False) or should_log:
            self.meter.restart_window()  # the speed excludes validation

    def _train_step(self) -> StepMetrics:
        self._seed(self.step)
        learning_rate = self.schedule.rate(self.step)
        set_learning_rate(self.optimizer, learning_rate)
        batch = self._accumulate_gradients()
        with record_function("optimizer"):
            self.scaler.unscale_(self.optimizer)
            grad_norm = clip_gradients(self.optimizer, self._parameters, self.config.optimizer.max_grad_norm)
            self._check_finite(batch, grad_norm)
            self.saver.wait_for_copy()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        facts = batch.auxiliary | self.task.step_facts(self.model)
        metrics = StepMetrics(
            self.step, batch.loss, learning_rate, grad_norm, skipped_steps=self.skipped_steps, facts=facts
        )
        num_bytes = batch.num_bytes if self.task.loss_is_entropy else 0
        return self.meter.measured(metrics, batch.num_targets, num_bytes, batch.num_positions)

    def _accumulate_gradients(self) -> _BatchSums:
        """Runs forward and backward passes over this process's parts of the batch."""
        parts = self._batches()
        counts = (self.task.count_targets, self.task.count_positions, self.task.count_bytes)
        num_targets, num_positions, num_bytes = self.distributed.sum(*(sum(map(count, parts)) for count in counts))
        if num_targets == 0 and not self.task.may_lack_targets:
            raise TrainingError(f"step {self.step + 1}: every label of the batch is masked, so there is no target")
        self._prepare_task(parts, parts[0])
        divisor, total = max(1, num_targets), 0.0
        further: dict[str, float] = {}
        names = self.loader.dataset.source_names
        by_source, metrics = np.zeros(2 * len(names)), np.zeros(2 * len(self.task.metric_names))
        for idx, part in enumerate(parts):
            with self.parallel.gradient_sync(last=idx == len(parts) - 1):
                with record_function("forward"), autocast(self.distributed.device, self.dtype):
                    loss = self.task.loss_sum(self.parallel.module, part.to(self.distributed.device)) / divisor
                objective, additions = loss, self.task.auxiliary_losses(self.model)
                share = self.task.count_targets(part) / divisor if additions else 0.0
                for name, (weight, value) in additions.items():
                    objective = objective + share * weight * value
                    further[name] = further.get(name, 0.0) + share * float(value.detach())
                # DDP averages over processes, but each loss is a share of a global mean, so the losses must be summed.
                with record_function("backward"):
                    scaled = self.scaler.scale(objective * self.distributed.world_size)
                    scaled.backward()  # type: ignore[no-untyped-call]
                    loss = loss.detach()
                    del scaled, objective, additions  # the last of the graph, whose release is part of the pass
            total += float(loss)
            if names:
                by_source += self.task.sums_by_source(part, len(names))
            if self.task.metric_names:
                metrics += self.task.metric_sums(part)
        # A signal to one process must stop all processes at the same step.
        summands = (total, self._stop.vote, *further.values(), *by_source, *metrics)
        loss_sum, self._stop_votes, *values = self.distributed.sum(*summands)
        auxiliary = dict(zip(further, values, strict=False))
        start, end = len(further), len(further) + len(by_source)
        auxiliary |= means_of([f"loss/{name}" for name in names], values[start:end])
        auxiliary |= means_of(self.task.metric_names, values[end:])
        return _BatchSums(loss_sum, num_targets, num_positions, num_bytes, auxiliary)

    def _batches(self) -> list[Batch]:
        """Returns this process's batches of the step."""
        first, number = self.distributed.rank * self.accumulation, self._batch_number()
        self._parts = [self.loader.part(number, first + idx) for idx in range(self.accumulation)]
        if type(self.task).batches is not Task.batches:
            with autocast(self.distributed.device, self.dtype):
                self._parts = self.task.batches(self.model, self._parts, self.step)
        return self._parts

    def _batch_number(self) -> int:
        """Returns the number of the part of the data that the next step is taken on."""
        return self.step // self.task.steps_per_batch

    def _must_stop(self) -> bool:
        """Returns whether any process received a signal; the result is the same in every process."""
        if self.step % self.task.steps_per_batch:
            return False
        return self._stop.received if self.distributed.world_size == 1 else self._stop_votes > 0

    def _check_finite(self, batch: _BatchSums, grad_norm: float) -> None:
        loss = batch.loss
        skipped = self.scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(grad_norm)
        self.skipped_steps += skipped
        self._skips_in_a_row = self._skips_in_a_row + 1 if skipped else 0
        if math.isfinite(loss) and (math.isfinite(grad_norm) or 0 < self._skips_in_a_row <= _MAX_SKIPS_IN_A_ROW):
            return
        passes = range(self.distributed.rank * self.accumulation, (self.distributed.rank + 1) * self.accumulation)
        bad = BadStep(
            step=self.step,
            rank=self.distributed.rank,
            loss=loss,
            grad_norm=grad_norm,
            num_targets=batch.num_targets,
            loss_scale=float(self.scaler.get_scale()),
            sample_ids=tuple(int(one) for idx in passes for one in self.loader.sample_ids(self._batch_number(), idx)),
            parts=tuple(self._parts),
        )
        raise not_finite(
            bad, self.loader.steps_per_epoch, dump(self.run, bad, self.model, self.distributed), self.dtype
        )

    def _validate_and_checkpoint(self, force: bool) -> bool:
        """Validates and saves a checkpoint if due or if `force` is set; returns whether it did either."""
        settings = self.config.training
        validate = force or self.step % settings.validate_every == 0
        checkpoint = force or self.step % settings.checkpoint_every == 0
        if validate or checkpoint:
            check_weights(self.step, self.model, self.distributed, self.dtype)
        if validate and self._last_validated != self.step:
            self._validate()
            checkpoint |= settings.keep_best and self.best.step == self.step
        if checkpoint:
            self._checkpoint()
        return validate or checkpoint

    def _is_done(self) -> bool:
        """Returns whether the last step is done, or the validation loss fell no more."""
        return self.step >= self.total_steps or self.best.is_over(self.config.training.stop_after_validations)

    def _validate(self) -> None:
        self._last_validated = self.step
        self._validation_due = False
        metrics = self.validate()
        if "validation_loss" in metrics:
            self.best.update(self.step, metrics["validation_loss"])
        for callback in self.callbacks if metrics else ():
            callback.on_validation_end(self.step, metrics)

    def _checkpoint(self, again: bool = False) -> None:
        """Saves a checkpoint, unless this step's is saved already and `again` is not set."""
        counters: dict[str, Any] = {"skipped_steps": self.skipped_steps, "validation_due": self._validation_due}
        counters |= self.best.state() | {"data": self.loader.state(self._batch_number())}
        self._announce_checkpoints(wait=True)  # the best checkpoint needs its name before a later save removes others
        self.saver.save(self.step, counters | self.meter.state(), again=again)
        self._announce_checkpoints()

    def _announce_checkpoints(self, *, wait: bool = False) -> None:
        for checkpoint in self.saver.completed(wait=wait):
            self._publish_best(checkpoint)
            for callback in self.callbacks:
                callback.on_checkpoint(step_of(checkpoint), checkpoint)

    def _publish_best(self, checkpoint: Checkpoint) -> None:
        if self.config.training.keep_best and self.best.step == step_of(checkpoint) and self.distributed.is_main:
            self.run.publish_best(checkpoint)

    def _restore(self, from_step: int | None) -> bool:
        """Restores the state of a checkpoint; returns False if the run has no checkpoint yet."""
        checkpoint = self.run.newest() if from_step is None else self.run.checkpoint(from_step)
        if checkpoint is None:
            return False
        counters = self.saver.restore(checkpoint)
        if from_step is not None and self.distributed.is_main:
            self.run.drop_after(from_step)
        self.step = counters["step"]
        self.skipped_steps = counters["skipped_steps"]
        self._validation_due = counters.get("validation_due", False)
        self.loader.restore(counters.get("data"), self._batch_number())
        self.meter.restore(counters, elapsed_at(self.run, self.step))
        self.best.restore(counters)
        self._publish_best(checkpoint)  # a crash may have come between the checkpoint and its name
        return True

    def _call_start(self) -> None:
        start = FitStart(
            first_step=self.step,
            total_steps=self.total_steps,
            unit=self.task.unit,
            num_parameters=sum(parameter.numel() for parameter in self._parameters),
            precision=str(self.dtype).removeprefix("torch."),
            device=str(self.distributed.device),
            model=self.model,
            targets=self.meter.targets,
            elapsed_s=self.meter.elapsed_s,
            notices=self.notices,
        )
        for callback in self.callbacks:
            callback.on_fit_start(start)
        self.model.train()
        self.meter.start(self.step)

    def _seed(self, step: int) -> None:
        seed_step(self.config.training.seed, step, self.distributed.rank)
