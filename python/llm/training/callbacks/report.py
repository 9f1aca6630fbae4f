"""The page of a run."""

import torch

from llm.checkpoint import Checkpoint, Run
from llm.training.callbacks.base import Callback
from llm.training.machine import machine_facts, version_facts
from llm.training.metrics import FitStart
from llm.training.record import RunRecord, write_about
from llm.training.report import write_report


class ReportWriter(Callback):
    """Writes `report.html` at each checkpoint and at the end, from the run's log and samples."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_fit_start(self, start: FitStart) -> None:
        """Writes `about.json`: the facts about the run that its settings don't tell."""
        facts = {
            "total_steps": start.total_steps,
            "unit": start.unit,
            "num_parameters": start.num_parameters,
            "precision": start.precision,
            "device": start.device,
            "machine": machine_facts(torch.device(start.device)),
            "versions": version_facts(),
        }
        write_about(self.run, facts)

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:  # noqa: ARG002
        """Writes the page so far."""
        write_report(RunRecord.read(self.run))

    def on_fit_end(self) -> None:
        """Writes the whole page."""
        write_report(RunRecord.read(self.run))
