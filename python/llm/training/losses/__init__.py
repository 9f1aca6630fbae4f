"""Losses; each is a function of the tokens' log-probabilities."""

from llm.training.losses.distillation import divergences
from llm.training.losses.likelihood import token_losses
from llm.training.losses.preference import Answers, PairLosses, kto_losses, pair_losses, reward_losses

__all__ = ["Answers", "PairLosses", "divergences", "kto_losses", "pair_losses", "reward_losses", "token_losses"]
