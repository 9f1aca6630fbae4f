"""A tokenizer with one id per character, for teaching, tests and tiny models."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from llm import _rust
from llm.errors import InvalidArgumentError, TokenizerError
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.files import StrPath, read_json_object, tokenizer_file
from llm.tokenization.options import TokenIds
from llm.tokenization.settings import TokenizerSettings

UNKNOWN_TOKEN = "<|unk|>"  # noqa: S105 -- a vocabulary's token, not a secret
DEFAULT_SPECIAL_TOKENS = (UNKNOWN_TOKEN, "<|endoftext|>")

# `.` excludes newlines, and regex engines disagree on the flag that includes them.
_PRE_TOKENIZER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
_DECODER = {"type": "Fuse"}


class SimpleCharacterTokenizer(BaseTokenizer):
    """Encodes each character as one id; unknown characters become `<|unk|>`.

    Ids are in code point order, followed by the special tokens.

    Raises:
        TokenizerError: An entry is not one character or is repeated, or `<|unk|>` is not a special token.
    """

    def __init__(
        self,
        characters: Sequence[str],
        special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
        settings: TokenizerSettings | None = None,
    ) -> None:
        _check_vocabulary(characters, special_tokens)
        self._ids = {token: index for index, token in enumerate([*characters, *special_tokens])}
        self._special_tokens = {token: self._ids[token] for token in special_tokens}
        self._bytes = [token.encode() for token in self._ids]
        roles = TokenizerSettings.for_special_tokens(special_tokens)
        super().__init__(settings or msgspec.structs.replace(roles, unk_token=UNKNOWN_TOKEN))

    @classmethod
    def train(cls, text: str, *, special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS) -> Self:
        """Creates a tokenizer for the characters in `text`.

        Raises:
            InvalidArgumentError: `text` is empty or contains a lone surrogate.
            TokenizerError: A special token is a single character or repeated, or `<|unk|>` is missing.
        """
        if not text:
            raise InvalidArgumentError("`text` must have at least one character, got an empty one")
        _utf8(text)
        return cls(sorted(set(text)), special_tokens)

    @classmethod
    def from_pretrained(cls, path: StrPath) -> Self:
        """Opens a directory or a `tokenizer.json`; see `BaseTokenizer.from_pretrained`."""
        file = tokenizer_file(path)
        document, settings = read_json_object(file), TokenizerSettings.load(file.parent)
        try:
            return cls(*_read_vocabulary(document), settings)
        except TokenizerError as error:
            raise TokenizerError(f"{file}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """The number of ids, which is one more than the highest id."""
        return len(self._ids)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids."""
        return dict(self._special_tokens)

    def token_bytes(self) -> list[bytes | None]:
        """Returns the UTF-8 bytes of each id."""
        return list(self._bytes)

    def decode_bytes(self, ids: TokenIds, *, skip_special_tokens: bool = False) -> bytes:
        """Decodes `ids` to bytes; see `BaseTokenizer.decode_bytes`."""
        for index, token_id in enumerate(ids):
            if not 0 <= token_id < self.vocab_size:
                raise InvalidArgumentError(
                    f"token ids must be ids of this tokenizer (0 to {self.vocab_size - 1}), "
                    f"got {token_id} at index {index}"
                )
        skipped = set(self._special_tokens.values()) if skip_special_tokens else set()
        return b"".join(self._bytes[token_id] for token_id in ids if token_id not in skipped)

    def to_json(self) -> str:
        """Returns the vocabulary as the text of Hugging Face's `tokenizer.json`."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": id_, "content": token, **flags} for token, id_ in self._special_tokens.items()],
            "normalizer": None,
            "pre_tokenizer": _PRE_TOKENIZER,
            "post_processor": None,
            "decoder": _DECODER,
            "model": {"type": "WordLevel", "vocab": self._ids, "unk_token": UNKNOWN_TOKEN},
        }
        return json.dumps(document, indent=2, ensure_ascii=False)

    def __reduce__(self) -> tuple[type[Self], tuple[list[str], list[str], TokenizerSettings]]:
        special = list(self._special_tokens)
        return type(self), ([token for token in self._ids if token not in special], special, self.settings)

    def _encode_ordinary(self, text: str) -> NDArray[np.uint32]:
        _utf8(text)
        unknown = self._special_tokens[UNKNOWN_TOKEN]
        return np.fromiter((self._ids.get(character, unknown) for character in text), np.uint32, len(text))

    def _offsets(
        self, ids: NDArray[np.uint32], text: str, plan: _rust.EncodePlan
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # Token bytes can't give these offsets: the text of an unknown character differs from its token.
        del ids
        tokens = list(self._ids)
        pieces = [piece for part in plan.split(text) for piece in (part if isinstance(part, str) else [tokens[part]])]
        byte_ends = np.cumsum([0, *(len(piece.encode()) for piece in pieces)], dtype=np.int64)
        char_ends = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        return np.stack([byte_ends[:-1], byte_ends[1:]], axis=1), np.stack([char_ends[:-1], char_ends[1:]], axis=1)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"text must be Unicode without lone surrogates, got one at index {error.start}\n"
            'hint: `text.encode("utf-8", "replace").decode()` replaces them'
        ) from error


def _check_vocabulary(characters: Sequence[str], special_tokens: Sequence[str]) -> None:
    tokens = [*characters, *special_tokens]
    if UNKNOWN_TOKEN not in special_tokens:
        raise TokenizerError(f"special tokens must have {UNKNOWN_TOKEN!r}, got {list(special_tokens)}")
    if any(len(character) != 1 for character in characters):
        raise TokenizerError(f"characters must be one each, got {[c for c in characters if len(c) != 1]}")
    if any(len(token) < 2 for token in special_tokens):
        raise TokenizerError(f"special tokens must have two characters or more, got {list(special_tokens)}")
    if len(set(tokens)) != len(tokens):
        raise TokenizerError(
            f"tokens must be unique, got duplicates of {sorted({t for t in tokens if tokens.count(t) > 1})}"
        )


def _read_vocabulary(document: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns characters and special tokens, each in order of id."""
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type") != "WordLevel" or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f"unsupported `model`: must be WordLevel with a vocabulary, got {str(model)[:200]}")
    expected = {"normalizer": None, "pre_tokenizer": _PRE_TOKENIZER, "post_processor": None, "decoder": _DECODER}
    for name, component in expected.items():
        if document.get(name) != component:
            raise TokenizerError(f"unsupported `{name}`: must be {component}, got {str(document.get(name))[:200]}")
    vocab: dict[str, int] = model["vocab"]
    if sorted(map(str, vocab.values())) != sorted(map(str, range(len(vocab)))):
        raise TokenizerError(f"ids of `model.vocab` must be 0 to {len(vocab) - 1}, each once")
    special = {token.get("content") for token in document.get("added_tokens") or [] if isinstance(token, dict)}
    tokens = sorted(vocab, key=vocab.__getitem__)
    num_characters = len(tokens) - len(special)
    return tokens[:num_characters], tokens[num_characters:]
