"""Drawn answers as batches that training reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.data import IGNORED_LABEL, RolloutBatch
from llm.training.rollouts import Answer


@dataclass(frozen=True)
class Drawn:
    """An answer with its prompt, and what it is worth.

    Attributes:
        prompt_ids: Token ids of the prompt.
        answer: The answer.
        advantage: How much better it is than the others of its group.
        weight: 0 for an answer that nothing is learnt of.
        reference: The reference's log-probability of each of its tokens; None without a reference.
    """

    prompt_ids: Sequence[int]
    answer: Answer
    advantage: float = 0.0
    weight: float = 1.0
    reference: Tensor | None = None

    @property
    def log_ratio(self) -> float:
        """Logarithm of the answer's probability over that of the reference; 0 without a reference."""
        return 0.0 if self.reference is None else sum(self.answer.logprobs) - float(self.reference.double().sum())


def concatenated(drawn: Sequence[Drawn]) -> RolloutBatch:
    """Returns answers, at least one, with their prompts side by side; nothing is counted yet."""
    prompts = [len(one.prompt_ids) for one in drawn]
    lengths = tuple(size + len(one.answer.token_ids) - 1 for size, one in zip(prompts, drawn, strict=True))
    token_ids = torch.tensor([token for one in drawn for token in [*one.prompt_ids, *one.answer.token_ids][:-1]])
    labels = torch.full((len(token_ids),), IGNORED_LABEL, dtype=torch.int64)
    old, reference = torch.zeros(2, len(token_ids)).unbind()
    start = 0
    for size, length, one in zip(prompts, lengths, drawn, strict=True):
        places = slice(start + size - 1, start + length)
        labels[places] = torch.tensor(one.answer.token_ids)
        old[places] = torch.tensor(one.answer.logprobs)
        if one.reference is not None:
            reference[places] = one.reference.cpu()
        start += length
    return RolloutBatch(
        token_ids=token_ids,
        labels=labels,
        lengths=lengths,
        old_logprobs=old,
        reference_logprobs=None if drawn[0].reference is None else reference,
        advantages=torch.tensor([one.advantage for one in drawn]),
        weights=torch.tensor([one.weight for one in drawn]),
        num_answers=0,
        num_tokens=0,
    )
