"""Sources of training samples."""

from llm.data.base import BaseDataModule, Dataset
from llm.data.batch import IGNORED_LABEL, Batch, PromptBatch, RegressionBatch, RolloutBatch, TokenBatch
from llm.data.chat import ChatDataModule
from llm.data.loader import BatchLoader, in_order
from llm.data.preferences import PreferenceDataModule
from llm.data.prompts import PromptDataModule
from llm.data.synthetic import SyntheticDataModule
from llm.data.text import TextDataModule

__all__ = [
    "IGNORED_LABEL",
    "BaseDataModule",
    "Batch",
    "BatchLoader",
    "ChatDataModule",
    "Dataset",
    "PreferenceDataModule",
    "PromptBatch",
    "PromptDataModule",
    "RegressionBatch",
    "RolloutBatch",
    "SyntheticDataModule",
    "TextDataModule",
    "TokenBatch",
    "in_order",
]
