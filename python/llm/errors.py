"""Every error this package raises on purpose.

A message says what, the value got, what is allowed, then the way out (`hint: …` on a line of its own).
Each class is an `LLMError` and the builtin a caller would expect.
"""


class LLMError(Exception):
    """Base of all errors raised by `llm`."""


class InvalidArgumentError(LLMError, ValueError):
    """An argument is outside what is allowed."""


class ConfigError(LLMError, ValueError):
    """A setting is unknown, of the wrong type or contradicts another."""


class RegistryError(LLMError, LookupError):
    """No component has this name."""


class TokenizerError(LLMError, ValueError):
    """Tokenizer data can't be read, represented or used."""


class ChatTemplateError(LLMError, ValueError):
    """A conversation can't be rendered by the checkpoint's chat template."""


class DataError(LLMError, ValueError):
    """Training data is missing, empty or unreadable."""


class CheckpointError(LLMError, ValueError):
    """A checkpoint is missing, torn or contradicts its config."""


class FileError(LLMError, OSError):
    """A file can't be read or written."""


class TrainingError(LLMError, RuntimeError):
    """Training can't go on (non-finite loss, mismatched resume)."""


class CapacityError(LLMError, RuntimeError):
    """A request can never fit the cache or the limits."""


class QueueFullError(CapacityError):
    """Too many requests wait already; the same request may work a moment later."""


class ContextLengthError(CapacityError, ValueError):
    """Prompt and new tokens don't fit the model's context."""


class UnknownRequestError(LLMError, LookupError):
    """No request has this id."""


class EngineError(LLMError, RuntimeError):
    """The engine failed or was shut down while a request was running."""


class ServerError(LLMError, RuntimeError):
    """The server can't start (port taken, bad address)."""


class MissingExtraError(LLMError, ImportError):
    """An optional dependency is needed for this."""


class InternalError(LLMError, RuntimeError):
    """An invariant of this package was broken: a bug here."""
