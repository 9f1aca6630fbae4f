"""Every error that this package raises on purpose.

A message states the problem, the value, the allowed values, and then a way out (`hint: …` on a line of its own).
Each class is an `LLMError` and the builtin that a caller would expect.
"""


class LLMError(Exception):
    """Base of all errors raised by `llm`."""


class LLMWarning(UserWarning):
    """Something that a user should know and that is no error; the command line shows it as a note."""


class InvalidArgumentError(LLMError, ValueError):
    """An argument has a value that is not allowed."""


class ConfigError(LLMError, ValueError):
    """A setting is unknown, has the wrong type or contradicts another setting."""


class RegistryError(LLMError, LookupError):
    """No component is registered under this name."""


class TokenizerError(LLMError, ValueError):
    """Tokenizer data cannot be read, represented or used."""


class ChatTemplateError(LLMError, ValueError):
    """The checkpoint's chat template cannot render a conversation."""


class DataError(LLMError, ValueError):
    """Training data is missing, empty or unreadable."""


class CheckpointError(LLMError, ValueError):
    """A checkpoint is missing, incomplete or contradicts its config."""


class FileError(LLMError, OSError):
    """A file cannot be read or written."""


class TrainingError(LLMError, RuntimeError):
    """Training cannot continue, for example after a non-finite loss or a mismatched resume."""


class CapacityError(LLMError, RuntimeError):
    """A request exceeds the cache or a limit and could never run."""


class QueueFullError(CapacityError):
    """The queue is full; the same request can succeed later."""


class ContextLengthError(CapacityError, ValueError):
    """Prompt and new tokens exceed the model's context."""


class GrammarError(InvalidArgumentError):
    """An answer cannot go on as its grammar wants it to, for example because the grammar has become too complex."""


class UnknownRequestError(LLMError, LookupError):
    """No request has this id."""


class EngineError(LLMError, RuntimeError):
    """The engine failed or was shut down while a request was running."""


class ProcessLostError(LLMError, ConnectionError):
    """A process that holds a part of the model ended, so that no step can be computed any more."""


class ServerError(LLMError, RuntimeError):
    """The server cannot start, for example because the port is in use."""


class MissingExtraError(LLMError, ImportError):
    """A feature needs an optional dependency that is not installed."""


class InternalError(LLMError, RuntimeError):
    """An invariant of this package was violated; this is a bug."""
