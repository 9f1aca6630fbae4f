"""Reads BPE tokenizers in all file formats into the Rust core and their settings."""

from llm.tokenization.readers.common import Loaded, ReadOptions
from llm.tokenization.readers.detect import read_vocabulary

__all__ = ["Loaded", "ReadOptions", "read_vocabulary"]
