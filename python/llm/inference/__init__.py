"""Generation: engine, cache and model runner."""

from llm.inference.async_engine import AsyncEngine
from llm.inference.engine import Engine, EngineConfig, NgramSpeculation
from llm.inference.load import load_async_engine, load_engine
from llm.inference.outputs import Delta, GenerationOutput, OutputBuilder, TokenLogprob, Usage

__all__ = [
    "AsyncEngine",
    "Delta",
    "Engine",
    "EngineConfig",
    "GenerationOutput",
    "NgramSpeculation",
    "OutputBuilder",
    "TokenLogprob",
    "Usage",
    "load_async_engine",
    "load_engine",
]
