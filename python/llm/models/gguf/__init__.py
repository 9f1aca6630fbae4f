"""Models in GGUF files, read as Hugging Face's config and tensors and written from them."""

from llm.models.gguf.reader import GGUFModel, LazyTensor, read_config, read_tensors

__all__ = ["GGUFModel", "LazyTensor", "read_config", "read_tensors"]
