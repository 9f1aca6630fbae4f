"""Reads every file format of a BPE tokenizer into the Rust core and its settings."""

from llm.tokenization.readers.common import Loaded, ReadOptions
from llm.tokenization.readers.detect import read_vocabulary

__all__ = ["Loaded", "ReadOptions", "read_vocabulary"]
