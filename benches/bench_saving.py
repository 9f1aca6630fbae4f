"""How long a checkpoint keeps the training loop waiting, saved in the loop and beside it.

`python benches/bench_saving.py [--cases 12m 135m] [--saves 3] [--steps 4] [--threads 2]` trains the same steps with
`training.async_save` off and on, and prints the median of the seconds that a save keeps the loop waiting: for the whole
save, or for its start and for the copy of weights and moments. The last save, for which the end of a run waits anyway,
is left out. Results go to `benches/results/training_saving.json`.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_training import SMALL, SMOLLM2

from llm.checkpoint import Run
from llm.data import SyntheticDataModule
from llm.settings.run import RunConfig, TrainingConfig
from llm.training import Callback, LanguageModelingTask, StepMetrics, TrainingEngine

RESULTS = Path(__file__).parent / "results"
# Model, samples of a batch, tokens of a sample.
CASES = {"12m": (SMALL, 4, 256), "135m": (SMOLLM2, 1, 256)}


class Clock(Callback):
    """Notes at the end of each step how long calls of the saver took until then."""

    def __init__(self, engine: TrainingEngine) -> None:
        self.waited: list[float] = []
        self._waited = 0.0
        saver: Any = engine.saver
        saver.save, saver.wait_for_copy = self._timed(saver.save), self._timed(saver.wait_for_copy)

    def _timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            before = time.perf_counter()
            try:
                return work(*args, **options)
            finally:
                self._waited += time.perf_counter() - before

        return run

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:  # noqa: ARG002
        self.waited.append(self._waited)


def train(case: str, options: argparse.Namespace, folder: Path, **training: Any) -> Clock:
    """Trains through one more save than are timed, which is the one that the end of the run waits for."""
    model, batch, length = CASES[case]
    steps = options.steps * (options.saves + 1)
    values = {"max_steps": steps, "batch_size": batch, "validate_every": 10**6, "precision": "float32"} | training
    config = RunConfig(model=model, training=TrainingConfig(**values, keep_checkpoints=1))
    run = Run(folder / "run")
    run.create(config, {})
    data = SyntheticDataModule(steps * batch, vocab_size=model.vocab_size, context_length=length)
    data.validation_dataset = lambda: None  # type: ignore[method-assign]
    engine = TrainingEngine(config, LanguageModelingTask(model), data, run)
    clock = Clock(engine)
    engine.callbacks = (clock,)
    engine.fit()
    shutil.rmtree(run.path)
    return clock


def measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times one model's saves."""
    found: dict[str, Any] = {}
    every = options.steps
    for kind, is_beside in (("loop", False), ("beside", True)):
        with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
            clock = train(case, options, Path(scratch), checkpoint_every=every, async_save=is_beside)
        # From the end of the step before a save to the end of the step before the next one, which the copy's end is in.
        places = range(every - 1, len(clock.waited), every)
        waits = [clock.waited[stop] - clock.waited[start] for start, stop in itertools.pairwise(places)]
        found[kind] = {"median_s": statistics.median(waits), "min_s": min(waits), "max_s": max(waits)}
    share = found["share"] = found["beside"]["median_s"] / found["loop"]["median_s"]
    loop, beside = (found[kind]["median_s"] for kind in ("loop", "beside"))
    print(
        f"{case}: a save keeps the loop waiting {loop:.3f} s in it, {beside:.4f} s beside it: {share:.1%}", flush=True
    )
    return found


def main() -> None:
    """Measures the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="between two saves")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--directory", help="on the disk to write to; default: that of temporary files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {case: measure(case, options) for case in options.cases}
    facts = {"torch": torch.__version__, "machine": platform.machine(), "threads": options.threads}
    file = RESULTS / "training_saving.json"
    file.write_text(json.dumps(facts | {"cases": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
