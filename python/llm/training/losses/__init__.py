"""Losses; each is a function of the tokens' log-probabilities."""

from llm.training.losses.likelihood import token_losses

__all__ = ["token_losses"]
