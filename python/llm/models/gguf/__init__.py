"""Reads GGUF files as Hugging Face's config and tensors, and writes them."""

from llm.models.gguf.plan import QUANTIZATIONS
from llm.models.gguf.reader import GGUFModel, LazyTensor, read_config, read_tensors
from llm.models.gguf.writer import write_gguf_model

__all__ = ["QUANTIZATIONS", "GGUFModel", "LazyTensor", "read_config", "read_tensors", "write_gguf_model"]
