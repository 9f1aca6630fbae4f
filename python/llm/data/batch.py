"""Batches that a data module passes to a task."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import torch
from torch import Tensor

from llm.models import IGNORED_LABEL

__all__ = ["IGNORED_LABEL", "Batch", "PromptBatch", "PromptRow", "RegressionBatch", "RolloutBatch", "TokenBatch"]


@dataclass(frozen=True)
class TokenBatch:
    """Token sequences, concatenated.

    Attributes:
        token_ids: int64 `[T]`.
        labels: int64 `[T]`, the next token at each position, or `IGNORED_LABEL` to exclude the position from the loss.
        lengths: Length of each sequence; they sum to `T`.
        sources: Index of each sequence's source; empty unless there are several sources.
        columns: Further numbers by name, one for each sequence, fp32 `[S]`, such as labels of answers.
    """

    token_ids: Tensor
    labels: Tensor
    lengths: tuple[int, ...]
    sources: tuple[int, ...] = ()
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "TokenBatch":
        """Returns the batch on `device`."""
        columns = {name: values.to(device) for name, values in self.columns.items()}
        return replace(self, token_ids=self.token_ids.to(device), labels=self.labels.to(device), columns=columns)


@dataclass(frozen=True)
class RegressionBatch:
    """Regression samples: features fp32 `[B, F]` and targets fp32 `[B]`."""

    features: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "RegressionBatch":
        """Returns the batch on `device`."""
        return RegressionBatch(self.features.to(device), self.targets.to(device))


@dataclass(frozen=True)
class RolloutBatch:
    """Drawn answers with their prompts, concatenated.

    Attributes:
        token_ids: int64 `[T]`.
        labels: int64 `[T]`, the next token where it is part of an answer, otherwise `IGNORED_LABEL`.
        lengths: Length of each sequence; they sum to `T`.
        old_logprobs: fp32 `[T]`, the engine's log-probability of each label; 0 where it is ignored.
        reference_logprobs: fp32 `[T]`, that of the model that the run started from; None if the loss needs none.
        advantages: fp32 `[S]`.
        weights: fp32 `[S]`, 0 for a sequence that nothing is learnt of, otherwise 1.
        num_answers: Number of answers drawn, of which those that teach nothing are left out of the sequences.
        num_tokens: Number of tokens of those answers that are not masked.
        sums: Sum and count of what was measured while drawing, by name.
    """

    token_ids: Tensor
    labels: Tensor
    lengths: tuple[int, ...]
    old_logprobs: Tensor
    reference_logprobs: Tensor | None
    advantages: Tensor
    weights: Tensor
    num_answers: int
    num_tokens: int
    sums: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to(self, device: torch.device) -> "RolloutBatch":
        """Returns the batch on `device`."""
        reference = self.reference_logprobs
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            labels=self.labels.to(device),
            old_logprobs=self.old_logprobs.to(device),
            reference_logprobs=None if reference is None else reference.to(device),
            advantages=self.advantages.to(device),
            weights=self.weights.to(device),
        )

    @property
    def sequence_of(self) -> Tensor:
        """The number of each token's sequence, int64 `[T]`."""
        device = self.token_ids.device
        return torch.arange(len(self.lengths), device=device).repeat_interleave(
            torch.tensor(self.lengths, device=device)
        )


class PromptRow(msgspec.Struct, frozen=True):
    """A prompt and what its rewards need.

    Attributes:
        where: Where the row stands, for messages.
        prompt: The text, or messages as in OpenAI's API.
        ids: The prompt's token ids.
        fields: All other fields of the row.
    """

    where: str
    prompt: str | list[dict[str, Any]]
    ids: list[int]
    fields: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt as a conversation."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt


@dataclass(frozen=True)
class PromptBatch:
    """Prompts to answer.

    Attributes:
        rows: The prompts.
        numbers: The number of each in the data.
    """

    rows: tuple[PromptRow, ...]
    numbers: tuple[int, ...]

    def to(self, device: torch.device) -> "PromptBatch":  # noqa: ARG002
        """Returns the batch itself, which has no tensors."""
        return self


Batch = TokenBatch | RegressionBatch | PromptBatch | RolloutBatch
