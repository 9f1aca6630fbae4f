"""Train a model and a loss of your own in the training loop; docs/own-task.md adds data of your own.

Usage: python examples/custom_task.py runs/huber
"""

import sys

from torch import Tensor, nn

from llm import SyntheticDataModule, TrainingEngine
from llm.checkpoint import Run
from llm.data.batch import RegressionBatch
from llm.settings.merge import load_run_config
from llm.training import JsonlLogger, ProgressBar, Task


class HuberTask(Task):
    """Fits a small network with the Huber loss, on which outliers weigh less than squared."""

    unit = "samples"

    def build_model(self) -> nn.Module:
        """Any module; the loop has seeded PyTorch before."""
        return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))

    def count_targets(self, batch: RegressionBatch) -> int:
        """Number of terms of the sum below."""
        return len(batch.targets)

    def loss_sum(self, model: nn.Module, batch: RegressionBatch) -> Tensor:
        """A sum: the loop divides it by the number of targets over all passes and processes."""
        return nn.functional.huber_loss(model(batch.features).float(), batch.targets, reduction="sum")


def main(out: str) -> None:
    """Logs, saves and can resume as for a language model."""
    config = load_run_config(overrides=["max_steps=300", "batch_size=32", "learning_rate=1e-2", "warmup_steps=10"])
    data = SyntheticDataModule(4096, task="regression", num_features=16)
    run = Run(out)
    run.create(config, {})
    TrainingEngine(config, HuberTask(), data, run, callbacks=[JsonlLogger(run), ProgressBar()]).fit()
    losses = [line["validation_loss"] for line in run.read_log() if "validation_loss" in line]
    print(f"validation loss {losses[-1]:.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(sys.argv[1])
