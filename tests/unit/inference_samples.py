"""Prompts, greedy sampling and slow twins that the tests of `llm.inference` share."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from llm import SamplingParams
from llm.checkpoint import load_model
from llm.inference import Delta, Engine
from llm.models import ForwardContext, positions_of

GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


PROMPTS = ["To be", "First Citizen:\nBefore we proceed any further", "O", "ROMEO:\n" * 8, "My lord, the king is"]


def greedy_by_full_forward(checkpoint: Path, prompt: list[int], steps: int) -> list[int]:
    """The obvious way: the whole sequence anew for each token."""
    model = load_model(checkpoint)
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            logits = model(torch.tensor(ids), positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
            ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :]


def drain(engine: Engine) -> dict[int, list[Delta]]:
    found: dict[int, list[Delta]] = {}
    while engine.has_unfinished():
        for request_id, event in engine.step():
            assert isinstance(event, Delta), event
            found.setdefault(request_id, []).append(event)
    engine.core.check_integrity()
    return found


def drain_ids(engine: Engine, ids: Sequence[int]) -> list[list[int]]:
    deltas = drain(engine)
    return [[token for delta in deltas[request_id] for token in delta.token_ids] for request_id in ids]


class FailsOnce:
    """The real runner, but for one step that fails as a device out of memory would."""

    def __init__(self, runner: object) -> None:
        self.runner = runner
        self.calls = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.runner, name)

    def run(self, plan: object) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("out of memory")
        return self.runner.run(plan)
