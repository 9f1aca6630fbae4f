"""Log-probabilities of given tokens by their definition, one row at a time."""

import torch
from torch import Tensor


def logprobs_by_row(
    hidden_states: Tensor, weight: Tensor, labels: Tensor, temperature: float, softcap: float | None
) -> Tensor:
    """The label's logit minus the log of the sum of exponentials; 0 for the label -100."""
    found = []
    for row, label in zip(hidden_states, labels.tolist(), strict=True):
        logits = torch.stack([(column * row).sum() for column in weight])
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits / temperature
        found.append(logits.sum() * 0 if label == -100 else logits[label] - torch.logsumexp(logits, 0))
    return torch.stack(found)
