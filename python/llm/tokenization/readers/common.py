"""Functions shared by the readers of all formats."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llm import _rust
from llm.errors import TokenizerError
from llm.tokenization.settings import TokenizerSettings

MAX_IDS = 1 << 24


class Loaded(NamedTuple):
    """A vocabulary with the settings of its special tokens."""

    core: _rust.Tokenizer
    settings: TokenizerSettings


class ReadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Information from the caller that some files don't contain."""

    pattern: str | None = None
    special_tokens: Mapping[str, int] | None = None
    allow_pickle: bool = False

    def reject_vocabulary(self, path: Path) -> None:
        """Raises an error if the caller gave options that the file at `path` defines itself.

        Raises:
            TokenizerError: `pattern` or `special_tokens` is given.
        """
        for name in ("pattern", "special_tokens"):
            if getattr(self, name) is not None:
                raise TokenizerError(
                    f"{path}: contains its own {name}; `{name}` is only for rank files, GPT-2's files and pickles"
                )


def core_from_document(document: Mapping[str, Any], path: Path) -> _rust.Tokenizer:
    """Returns the core of a `tokenizer.json` built in memory.

    Raises:
        TokenizerError: A component is not supported; the message names `path`.
    """
    return core_from_json(json.dumps(document), path)


def core_from_json(text: str, path: Path) -> _rust.Tokenizer:
    """Returns the core of the text of a `tokenizer.json`.

    Raises:
        TokenizerError: A component is not supported; the message names `path`.
    """
    try:
        return _rust.Tokenizer.from_json(text)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


def byte_level_document(
    vocab: Mapping[str, int],
    merges: Sequence[str | Sequence[str]],
    added_tokens: Sequence[Mapping[str, Any]],
    pre_tokenizer: Mapping[str, Any],
    **parts: Any,
) -> dict[str, Any]:
    """Returns a `tokenizer.json` of a byte-level BPE; `parts` are `normalizer`, `post_processor`, `ignore_merges`."""
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": parts.pop("ignore_merges", False)}
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": list(added_tokens),
        "pre_tokenizer": pre_tokenizer,
        "decoder": decoder,
        "model": model,
        **parts,
    }


def added_token(content: str, token_id: int, *, special: bool = True, normalized: bool = False) -> dict[str, Any]:
    """Returns an entry of `added_tokens` with all other flags unset."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": special,
    }


@functools.cache
def pre_tokenizer_json(pattern: str) -> str:
    """Returns the `pre_tokenizer` of a byte-level BPE that splits text by `pattern`, a name or regular expression.

    Raises:
        InvalidArgumentError: The pattern looks like a name but is unknown.
        TokenizerError: The expression does not compile.
    """
    bare = _rust.Tokenizer.from_ranks([bytes([byte]) for byte in range(256)], {}, pattern)
    return json.dumps(json.loads(bare.to_json())["pre_tokenizer"])


def pre_tokenizer(pattern: str) -> dict[str, Any]:
    """Returns the decoded JSON of `pre_tokenizer_json`."""
    value: dict[str, Any] = json.loads(pre_tokenizer_json(pattern))
    return value


def core_from_ranks(
    ranks: Mapping[bytes, int], special_tokens: Mapping[str, int], pattern: str, path: Path
) -> _rust.Tokenizer:
    """Returns the core of tiktoken's table of ranks.

    Raises:
        InvalidArgumentError: `pattern` looks like a name but is unknown.
        TokenizerError: A rank is out of range or a duplicate, or `_rust.Tokenizer.from_ranks` rejects the table.
    """
    for token, rank in ranks.items():
        if not 0 <= rank < MAX_IDS:
            raise TokenizerError(f"{path}: ranks must be from 0 to {MAX_IDS - 1}, got {rank} for {token!r}")
    table = [b""] * (max(ranks.values(), default=-1) + 1)
    for token, rank in ranks.items():
        if table[rank]:
            raise TokenizerError(f"{path}: ranks must be unique, got {rank} for {table[rank]!r} and {token!r}")
        table[rank] = token
    try:
        return _rust.Tokenizer.from_ranks(table, dict(special_tokens), pattern)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
