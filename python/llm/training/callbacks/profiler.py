"""Where the time of some steps goes."""

import time
from collections.abc import Mapping

import torch
from torch.profiler import ProfilerActivity, profile

from llm.checkpoint import Run, write_atomically
from llm.training.callbacks.base import Callback
from llm.training.metrics import FitStart, StepMetrics

# The parts of a step that the loop marks.
PARTS = ("forward", "backward", "optimizer")
_MAX_ROWS = 40


class StepProfiler(Callback):
    """Records the operations of some steps and writes them into the run's `profile/`.

    `trace_FIRST-LAST.json.gz` opens in Perfetto and in `chrome://tracing`. `table_FIRST-LAST.txt` has the parts of a
    step and the operations that take the most time. Recording slows a step down, short operations the most.

    Args:
        run: The run.
        first: First step to record, from 1 on.
        last: Last step to record.
    """

    def __init__(self, run: Run, first: int, last: int) -> None:
        self.run = run
        self.first = first
        self.last = last
        self._profile: profile | None = None
        self._recorded = 0
        self._started = 0.0

    def on_fit_start(self, start: FitStart) -> None:
        """Starts to record if the next step is one of those to record."""
        self._start_before(start.first_step + 1)

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:  # noqa: ARG002
        """Starts or stops to record between two steps."""
        if self._profile is not None:
            self._recorded += 1
            if metrics.step >= self.last:
                self._stop()
        else:
            self._start_before(metrics.step + 1)

    def on_fit_end(self) -> None:
        """Writes what is recorded if the run ends before the last step to record."""
        self._stop()

    def _start_before(self, step: int) -> None:
        if not self.first <= step <= self.last:
            return
        self.first = step  # later in a resumed run than asked for
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()
        self._started = time.perf_counter()

    def _stop(self) -> None:
        if self._profile is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        elapsed_s = time.perf_counter() - self._started
        found, self._profile = self._profile, None
        found.stop()
        folder = self.run.path / "profile"
        folder.mkdir(exist_ok=True)
        name = f"{self.first}-{self.first + self._recorded - 1}"
        found.export_chrome_trace(str(folder / f"trace_{name}.json.gz"))
        write_atomically(folder / f"table_{name}.txt", _table(found, elapsed_s / max(1, self._recorded)))


def _table(found: profile, step_s: float) -> str:
    """Returns the parts of a step, then the operations that take the most time by themselves."""
    events = found.key_averages()
    on_gpu = torch.cuda.is_available()
    totals = {event.key: event.device_time_total if on_gpu else event.cpu_time_total for event in events}
    counts = {event.key: event.count for event in events}
    steps = max(1, counts.get("optimizer", 1))
    parts = {name: totals.get(name, 0.0) / steps / 1e3 for name in PARTS}
    lines = part_lines(step_s * 1e3, parts)
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    operations = events.table(sort_by=by, row_limit=_MAX_ROWS, max_name_column_width=50)
    return "\n".join([*lines, "", operations, ""])


def part_lines(step_ms: float, parts: Mapping[str, float]) -> list[str]:
    """Returns a line for a step and each of its parts in milliseconds, and one for what is left."""
    rows = {"step": step_ms, **parts, "everything else": step_ms - sum(parts.values())}
    return [f"{name:<16}{value:>10.2f} ms{value / step_ms:>8.1%}" for name, value in rows.items()]
