"""Optimizers, their groups of parameters, and their state by parameter name."""

from llm.training.optim.build import build_optimizer, set_learning_rate
from llm.training.optim.clipping import clip_gradients
from llm.training.optim.muon import Muon
from llm.training.optim.state import load_optimizer_tensors, optimizer_tensors

__all__ = [
    "Muon",
    "build_optimizer",
    "clip_gradients",
    "load_optimizer_tensors",
    "optimizer_tensors",
    "set_learning_rate",
]
