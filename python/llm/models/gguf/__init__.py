"""Reads GGUF files as Hugging Face's config and tensors, and writes them."""

from llm.models.gguf.lazy import JoinedTensor, LazyTensor
from llm.models.gguf.plan import QUANTIZATIONS, matrix_kind
from llm.models.gguf.reader import GGUFModel, read_config, read_tensors
from llm.models.gguf.types import EncodedRows, ValueType, encode_groups
from llm.models.gguf.writer import model_metadata, write_gguf_model

__all__ = [
    "QUANTIZATIONS",
    "EncodedRows",
    "GGUFModel",
    "JoinedTensor",
    "LazyTensor",
    "ValueType",
    "encode_groups",
    "matrix_kind",
    "model_metadata",
    "read_config",
    "read_tensors",
    "write_gguf_model",
]
