"""Generation: engine, cache and model runner."""

from llm.inference.engine import Engine
from llm.inference.load import build_engine, load_async_engine, load_engine
from llm.inference.outputs import Delta, GenerationOutput, OutputBuilder, TokenLogprob, Usage
from llm.inference.scoring import Pooling, Score
from llm.inference.thread import AsyncEngine
from llm.settings.engine import DraftSpeculation, EngineConfig, NgramSpeculation

__all__ = [
    "AsyncEngine",
    "Delta",
    "DraftSpeculation",
    "Engine",
    "EngineConfig",
    "GenerationOutput",
    "NgramSpeculation",
    "OutputBuilder",
    "Pooling",
    "Score",
    "TokenLogprob",
    "Usage",
    "build_engine",
    "load_async_engine",
    "load_engine",
]
