"""llm-oxide: from a text corpus to a chat endpoint.

Names are imported on first use, so `import llm` and `llm --help` load neither PyTorch nor the server.
"""

import importlib
from typing import TYPE_CHECKING, Any

from llm.registry import registry
from llm.settings.sampling import SamplingParams
from llm.settings.structured import StructuredOutputs

if TYPE_CHECKING:
    from llm.api import LLM, dpo, evaluate, reward, serve, sft, train
    from llm.data import BaseDataModule, SyntheticDataModule, TextDataModule
    from llm.inference import GenerationOutput
    from llm.merging import merge
    from llm.models import DecoderModel, RegressionModel, TransformerBlock
    from llm.models.layers.mlp import MLP, SwiGLU
    from llm.models.layers.norm import LayerNorm, RMSNorm
    from llm.quantizing import quantize
    from llm.registry import ComponentRegistry
    from llm.settings.merge import load_run_config
    from llm.settings.model import ModelConfig
    from llm.settings.run import RunConfig
    from llm.tokenization import BaseTokenizer, BPETokenizer, SimpleCharacterTokenizer, load_tokenizer
    from llm.training import Callback, LanguageModelingTask, RegressionTask, TrainingEngine

_PLACES = {
    "LLM": "llm.api",
    "dpo": "llm.api",
    "evaluate": "llm.api",
    "grpo": "llm.api",
    "reward": "llm.api",
    "serve": "llm.api",
    "sft": "llm.api",
    "train": "llm.api",
    "ModelConfig": "llm.settings.model",
    "RunConfig": "llm.settings.run",
    "load_run_config": "llm.settings.merge",
    "BaseDataModule": "llm.data",
    "SyntheticDataModule": "llm.data",
    "TextDataModule": "llm.data",
    "GenerationOutput": "llm.inference",
    "DecoderModel": "llm.models",
    "RegressionModel": "llm.models",
    "TransformerBlock": "llm.models",
    "MLP": "llm.models.layers.mlp",
    "SwiGLU": "llm.models.layers.mlp",
    "merge": "llm.merging",
    "quantize": "llm.quantizing",
    "LayerNorm": "llm.models.layers.norm",
    "RMSNorm": "llm.models.layers.norm",
    "ComponentRegistry": "llm.registry",
    "BaseTokenizer": "llm.tokenization",
    "BPETokenizer": "llm.tokenization",
    "SimpleCharacterTokenizer": "llm.tokenization",
    "load_tokenizer": "llm.tokenization",
    "Callback": "llm.training",
    "LanguageModelingTask": "llm.training",
    "RegressionTask": "llm.training",
    "TrainingEngine": "llm.training",
}

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "MLP",
    "BPETokenizer",
    "BaseDataModule",
    "BaseTokenizer",
    "Callback",
    "ComponentRegistry",
    "DecoderModel",
    "GenerationOutput",
    "LanguageModelingTask",
    "LayerNorm",
    "ModelConfig",
    "RMSNorm",
    "RegressionModel",
    "RegressionTask",
    "RunConfig",
    "SamplingParams",
    "SimpleCharacterTokenizer",
    "StructuredOutputs",
    "SwiGLU",
    "SyntheticDataModule",
    "TextDataModule",
    "TrainingEngine",
    "TransformerBlock",
    "dpo",
    "evaluate",
    "grpo",
    "load_run_config",
    "load_tokenizer",
    "merge",
    "quantize",
    "registry",
    "reward",
    "serve",
    "sft",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _PLACES:
        raise AttributeError(f"module 'llm' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
