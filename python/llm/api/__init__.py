"""The public verbs: train a model, run it, evaluate it, serve it."""

from llm.api.model import LLM
from llm.api.training import dpo, grpo, reward, sft, train, tuning_overrides
from llm.api.verbs import evaluate, serve

__all__ = ["LLM", "dpo", "evaluate", "grpo", "reward", "serve", "sft", "train", "tuning_overrides"]
