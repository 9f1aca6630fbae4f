"""Divergences between the probabilities of a student and those of its teacher."""

import torch
from torch import Tensor

# Probability that the tokens beside the most probable ones have at least, for its logarithm.
_LEAST = 1e-6


def divergences(student: Tensor, teacher: Tensor, kind: str, *, is_whole: bool = False) -> Tensor:
    """Returns how far a student's next-token probabilities are from its teacher's, in nats, with gradient.

    The teacher's most probable tokens count one by one, and all others together as one more token. That is at most the
    divergence over the whole vocabulary, and equals it where all tokens are given.

    Args:
        student: The student's log-probabilities of the teacher's most probable tokens, fp32 `[T, K]`.
        teacher: The teacher's own, fp32 `[T, K]`.
        kind: `forward`, Σ p log(p / q) for the teacher's p and the student's q, or `reverse`, Σ q log(q / p).
        is_whole: Whether the tokens are the whole vocabulary.

    Returns:
        fp32 `[T]`, at least 0 up to rounding.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2; Gu et al. 2023, "MiniLLM",
    equation 1, for the reverse direction.
    """
    if not is_whole:
        student, teacher = _with_rest(student), _with_rest(teacher)
    of, by = (teacher, student) if kind == "forward" else (student, teacher)
    return (of.exp() * (of - by)).sum(-1)


def _with_rest(logprobs: Tensor) -> Tensor:
    """Returns the log-probabilities and that of all other tokens together, `[T, K + 1]`."""
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp_min(_LEAST)
    return torch.cat([logprobs, rest.log()], dim=-1)
