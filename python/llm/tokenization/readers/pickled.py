"""Reads pickled tokenizers, restricted to plain values and tiktoken's `Encoding`.

A pickle can run any code when it is read, so no class or function in it is called. No other module may read pickles.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.errors import TokenizerError
from llm.tokenization.files import read_bytes
from llm.tokenization.readers.common import Loaded, ReadOptions, core_from_ranks
from llm.tokenization.settings import TokenizerSettings

SUFFIXES = (".pkl", ".pickle")
_WANTED = (
    "a dict with `mergeable_ranks` (tokens as bytes, and ranks) and `pat_str` or `pattern`, or tiktoken's Encoding"
)


class _Encoding:
    """Replaces `tiktoken.Encoding` and keeps its saved state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        """Returns the replacement for tiktoken's class; rejects all other classes without looking them up."""
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Encoding
        raise TokenizerError(
            f"rejected class `{module}.{name}`: a pickled tokenizer may hold plain values and tiktoken.core.Encoding\n"
            "hint: save the original tokenizer as tokenizer.json, or its ranks as a .tiktoken file"
        )

    def persistent_load(self, pid: Any) -> Any:
        """Rejects persistent ids, which refer to data outside the file."""
        raise TokenizerError(f"rejected persistent id {str(pid)[:60]!r}: a pickled tokenizer must be one complete file")


def read_pickle(path: Path, options: ReadOptions) -> Loaded:
    """Reads a pickled tokenizer if the caller allows pickles.

    Raises:
        FileError: The file can't be read.
        TokenizerError: Pickles are not allowed, or the file contains another class (which the message names), is
            truncated, or is not a tokenizer.
    """
    if not options.allow_pickle:
        raise TokenizerError(
            f"{path}: is a pickle, which is read only with `allow_pickle=True`\n"
            "hint: even then, only plain values and tiktoken's Encoding are read from it"
        )
    try:
        state = _Unpickler(io.BytesIO(read_bytes(path))).load()
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    except Exception as error:
        raise TokenizerError(f"{path}: must be a whole pickle: {type(error).__name__} {error}") from error
    state = state.state if isinstance(state, _Encoding) else state
    return _from_state(state, path, options)


def _from_state(state: Any, path: Path, options: ReadOptions) -> Loaded:
    if not isinstance(state, dict):
        raise TokenizerError(f"{path}: must hold {_WANTED}, got {type(state).__name__} {str(state)[:60]!r}")
    ranks: Any = state.get("mergeable_ranks")
    pattern = options.pattern or state.get("pat_str") or state.get("pattern")
    special: Any = state.get("special_tokens", {}) if options.special_tokens is None else options.special_tokens
    if not _is_table(ranks, bytes) or not isinstance(pattern, str) or not _is_table(special, str):
        raise TokenizerError(f"{path}: must hold {_WANTED}, got keys {sorted(map(str, state))[:20]}")
    core = core_from_ranks(ranks, special, pattern, path)
    return Loaded(core, TokenizerSettings.for_special_tokens(core.special_tokens))


def _is_table(value: Any, key: type) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, key) and isinstance(v, int) for k, v in value.items())
