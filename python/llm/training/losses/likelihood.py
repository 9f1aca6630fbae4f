"""The loss of predicting the next token."""

from torch import Tensor, nn

from llm.data import TokenBatch
from llm.models import ForwardContext, Targets, positions_of


def token_losses(
    model: nn.Module, batch: TokenBatch, *, attention_backend: str = "auto", is_summed: bool = True
) -> Tensor:
    """Returns each token's cross-entropy in nats, with gradient.

    Args:
        model: A `DecoderModel`, or a wrapper that averages gradients over processes.
        batch: Tokens and labels.
        attention_backend: See `ForwardContext`.
        is_summed: Whether the loss weighs all tokens alike; see `Targets`.

    Returns:
        fp32 `[T]`; 0 where the label is ignored.
    """
    context = ForwardContext.for_sequences(
        batch.lengths, attention_backend=attention_backend, targets=Targets(batch.labels, is_summed=is_summed)
    )
    logprobs: Tensor = model(batch.token_ids, positions_of(batch.lengths, batch.token_ids.device), context)
    return -logprobs
