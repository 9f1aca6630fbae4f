"""Sources of training samples."""

from llm.data.base import BaseDataModule, Dataset
from llm.data.batch import IGNORED_LABEL, Batch, RegressionBatch, TokenBatch
from llm.data.loader import BatchLoader, in_order
from llm.data.synthetic import SyntheticDataModule
from llm.data.text import TextDataModule

__all__ = [
    "IGNORED_LABEL",
    "BaseDataModule",
    "Batch",
    "BatchLoader",
    "Dataset",
    "RegressionBatch",
    "SyntheticDataModule",
    "TextDataModule",
    "TokenBatch",
    "in_order",
]
