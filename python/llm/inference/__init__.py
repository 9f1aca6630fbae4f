"""Text generation: sessions, the engine, its key-value cache and its model runners."""

from llm.inference.embedding import Pooling
from llm.inference.engine import Engine
from llm.inference.load import build_engine, check_loadable, load_async_engine, load_engine
from llm.inference.outputs import ChoiceDelta, Collector, Delta, FinishReason, GenerationOutput, TokenLogprob, Usage
from llm.inference.parts import AnswerSetup, Part, PartKind, PartsParser, ToolCall, parameter_types
from llm.inference.prompt import Prompt
from llm.inference.scoring import Score
from llm.inference.session import Session, Stream
from llm.inference.thread import AsyncEngine
from llm.settings.engine import DraftSpeculation, EngineConfig, NgramSpeculation

__all__ = [
    "AnswerSetup",
    "AsyncEngine",
    "ChoiceDelta",
    "Collector",
    "Delta",
    "DraftSpeculation",
    "Engine",
    "EngineConfig",
    "FinishReason",
    "GenerationOutput",
    "NgramSpeculation",
    "Part",
    "PartKind",
    "PartsParser",
    "Pooling",
    "Prompt",
    "Score",
    "Session",
    "Stream",
    "TokenLogprob",
    "ToolCall",
    "Usage",
    "build_engine",
    "check_loadable",
    "load_async_engine",
    "load_engine",
    "parameter_types",
]
