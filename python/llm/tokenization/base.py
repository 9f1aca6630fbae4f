"""The interface of every tokenizer; other layers use nothing beyond it."""

import abc
import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self, Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray

from llm import _rust
from llm.errors import InvalidArgumentError, TokenizerError
from llm.tokenization.blocks import BlockIds, parts_of, slow_block_ids
from llm.tokenization.files import TOKENIZER_FILE, StrPath, write_text
from llm.tokenization.options import (
    EncodeOptions,
    Encoding,
    FlatIds,
    PaddedEncodeOptions,
    PadOptions,
    TokenIds,
    encode_plan,
    hashable,
    text_list,
)
from llm.tokenization.padding import PaddedBatch, pad_flat
from llm.tokenization.settings import TokenizerSettings

# Of an endless variety of options only the first few are worth remembering.
MAX_PLANS = 64


class BaseTokenizer(abc.ABC):
    """Base class of tokenizers, which encode text to ids and decode ids to text.

    A subclass defines the vocabulary: `vocab_size`, `special_tokens`, `token_bytes`, `decode_bytes`, `to_json`,
    `from_pretrained` and `_encode_ordinary`. Only `settings` may change after construction.

    All encoding methods accept the keywords of `EncodeOptions` and return the same ids.
    """

    def __init__(self, settings: TokenizerSettings) -> None:
        self.settings = settings

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of ids: one more than the highest id."""

    @property
    @abc.abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids."""

    @abc.abstractmethod
    def token_bytes(self) -> list[bytes | None]:
        """Returns the bytes of each id, or None for an id without text. The server detokenizes with this table."""

    @abc.abstractmethod
    def decode_bytes(self, ids: TokenIds, *, skip_special_tokens: bool = False) -> bytes:
        """Returns the bytes of `ids` (T,), with special tokens as their text or omitted.

        Raises:
            InvalidArgumentError: An id is not in the vocabulary.
        """

    @abc.abstractmethod
    def to_json(self) -> str:
        """Returns the vocabulary as the text of Hugging Face's `tokenizer.json`."""

    @classmethod
    @abc.abstractmethod
    def from_pretrained(cls, path: StrPath) -> Self:
        """Opens a directory that `save` wrote, or its `tokenizer.json` with the `tokenizer_config.json` beside it.

        Raises:
            FileError: The file does not exist.
            TokenizerError: A component is not supported, or the file holds another kind of tokenizer.
        """

    @abc.abstractmethod
    def _encode_ordinary(self, text: str) -> NDArray[np.uint32]:
        """Returns the ids of `text`, uint32 (T,), treating special tokens as plain text."""

    @property
    def settings(self) -> TokenizerSettings:
        """Roles of special tokens and the chat template.

        Raises:
            TokenizerError: The new settings name a token that is not special in this tokenizer.
        """
        return self._settings

    @settings.setter
    def settings(self, settings: TokenizerSettings) -> None:
        special = self.special_tokens
        roles = (settings.bos_token, settings.pad_token, settings.unk_token, *settings.eos_tokens)
        for token in roles:
            if token is not None and token not in special:
                raise TokenizerError(f"tokens with a role must be special tokens ({sorted(special)}), got {token!r}")
        self._settings = settings
        self._plans: dict[object, _rust.EncodePlan] = {}

    @property
    def cuts_at_line_ends(self) -> bool:
        """Whether tokens never span a line end between lines that begin and end with neither space nor `/`.

        If so, the parts of a long text have the same ids as the whole text.
        """
        return True

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-text token, or None."""
        token = self.settings.bos_token
        return None if token is None else self.special_tokens[token]

    @property
    def pad_id(self) -> int | None:
        """Id of the padding token, which is never sampled, or None."""
        token = self.settings.pad_token
        return None if token is None else self.special_tokens[token]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text; training uses the first."""
        return tuple(self.special_tokens[token] for token in self.settings.eos_tokens)

    @property
    def chat_template(self) -> str | None:
        """Jinja template that renders a conversation as text, or None."""
        return self.settings.chat_template

    @property
    def chat_stop(self) -> tuple[str, ...]:
        """Strings that end a turn of a conversation."""
        return self.settings.chat_stop

    def encode(self, text: str, **options: Unpack[EncodeOptions]) -> list[int]:
        """Encodes `text` to a list of ids.

        Args:
            text: Any Unicode text.
            **options: Special tokens, BOS and EOS, truncation; see `EncodeOptions`.

        Raises:
            InvalidArgumentError: `text` contains a lone surrogate or a disallowed special token, there is no BOS or EOS
                to add, or an option has an invalid value.
        """
        ids: list[int] = self.encode_to_numpy(text, **options).tolist()
        return ids

    def encode_to_numpy(self, text: str, **options: Unpack[EncodeOptions]) -> NDArray[np.uint32]:
        """Encodes `text` to an array, uint32 (T,), without creating a Python object per id."""
        if not options:
            return self._encode_ordinary(text)
        return self._encode_planned(text, self._plan(options))

    def encode_batch(
        self, texts: Iterable[str], *, num_threads: int | None = None, **options: Unpack[EncodeOptions]
    ) -> list[list[int]]:
        """Encodes each text to a list of ids.

        Args:
            texts: B texts.
            num_threads: Number of threads, if this tokenizer supports several; None uses one per core.
            **options: See `EncodeOptions`.

        Raises:
            InvalidArgumentError: As in `encode`, with the index of the text, or `num_threads` is not positive.
        """
        flat = self.encode_batch_flat(texts, num_threads=num_threads, **options)
        ids = flat.ids.tolist()
        return [ids[start:stop] for start, stop in pairwise(flat.offsets.tolist())]

    def encode_batch_to_numpy(
        self, texts: Iterable[str], *, num_threads: int | None = None, **options: Unpack[EncodeOptions]
    ) -> list[NDArray[np.uint32]]:
        """Encodes each text to an array, uint32 (T,). The arrays are views that keep one shared array alive."""
        flat = self.encode_batch_flat(texts, num_threads=num_threads, **options)
        return [flat.ids[start:stop] for start, stop in pairwise(flat.offsets.tolist())]

    def encode_batch_flat(
        self, texts: Iterable[str], *, num_threads: int | None = None, **options: Unpack[EncodeOptions]
    ) -> FlatIds:
        """Encodes all texts into one array, the fastest method for many short texts."""
        if num_threads is not None and num_threads < 1:
            raise InvalidArgumentError(f"`num_threads` must be positive, got {num_threads}")
        return self._encode_flat(text_list(texts), self._plan(options) if options else None, num_threads)

    def encode_blocks(self, blocks: Sequence[_rust.TextBlock]) -> BlockIds:
        """Encodes pieces of documents for training, with the first of `eos_ids` after each document if there is one.

        Special tokens in the text are plain text. The ids have 16 bits if `vocab_size` allows it.
        """
        return slow_block_ids(self.encode_batch_flat, blocks, self.eos_ids[:1], self.vocab_size)

    def encode_padded(
        self, texts: Iterable[str], *, num_threads: int | None = None, **options: Unpack[PaddedEncodeOptions]
    ) -> PaddedBatch:
        """Encodes texts into one padded array with an attention mask, ready for a model.

        Args:
            texts: B texts.
            num_threads: As in `encode_batch`.
            **options: See `EncodeOptions` and `PadOptions`.

        Raises:
            InvalidArgumentError: As in `encode_batch` and `pad`.
        """
        padding = {name: value for name, value in options.items() if name in PadOptions.__annotations__}
        encoding = {name: value for name, value in options.items() if name not in padding}
        rows = self.encode_batch_flat(texts, num_threads=num_threads, **cast(EncodeOptions, encoding))
        return self._pad(rows, cast(PadOptions, padding))

    def pad(self, rows: Collection[TokenIds], **options: Unpack[PadOptions]) -> PaddedBatch:
        """Pads rows of ids into one array with an attention mask.

        Args:
            rows: B rows of any length.
            **options: See `PadOptions`.

        Raises:
            InvalidArgumentError: There is no id to pad with, a row is too long, or an option has an invalid value.
        """
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        ids = np.concatenate([np.zeros(0, np.int64), *(np.asarray(row, dtype=np.int64) for row in rows)])
        return self._pad(FlatIds(ids.astype(np.uint32), offsets), options)

    def encode_with_offsets(self, text: str, **options: Unpack[EncodeOptions]) -> Encoding:
        """Encodes `text` and returns each token's position in it, in bytes and in characters.

        A token can begin or end inside a character; its character offsets then cover the whole character.

        Raises:
            InvalidArgumentError: As in `encode`.
        """
        plan = self._plan(options)
        special = {name: value for name, value in options.items() if "special" in name}
        ids = self.encode_to_numpy(text, **cast(EncodeOptions, special))
        own = slice(*plan.kept(len(ids)))
        before, after = (np.array(around, np.uint32) for around in plan.template)
        around = [(len(before), len(after)), (0, 0)]
        byte_offsets, char_offsets = (np.pad(places[own], around) for places in self._offsets(ids, text, plan))
        return Encoding(np.concatenate([before, ids[own], after]), byte_offsets, char_offsets)

    def count_tokens(self, text: str, **options: Unpack[EncodeOptions]) -> int:
        """Returns the number of ids that `encode` would return."""
        return len(self.encode_to_numpy(text, **options))

    def decode(self, ids: TokenIds, *, skip_special_tokens: bool = False) -> str:
        """Decodes `ids` (T,) to text; invalid UTF-8 becomes U+FFFD.

        Raises:
            InvalidArgumentError: An id is not in the vocabulary.
        """
        return self.decode_bytes(ids, skip_special_tokens=skip_special_tokens).decode("utf-8", "replace")

    def decode_batch(
        self, batch: Iterable[TokenIds], *, skip_special_tokens: bool = False, num_threads: int | None = None
    ) -> list[str]:
        """Decodes each row of ids to text; `num_threads` is as in `encode_batch`."""
        if num_threads is not None and num_threads < 1:
            raise InvalidArgumentError(f"`num_threads` must be positive, got {num_threads}")
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in batch]

    @overload
    def decode_stream(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> Iterator[str]: ...
    @overload
    def decode_stream(self, ids: None = None, *, skip_special_tokens: bool = False) -> _rust.TokenStream: ...
    def decode_stream(
        self, ids: Iterable[int] | None = None, *, skip_special_tokens: bool = False
    ) -> Iterator[str] | _rust.TokenStream:
        """Decodes ids that arrive one at a time, in parts that never end inside a character.

        The parts add up to the result of `decode`.

        Args:
            ids: An iterable of ids; returns an iterator of non-empty parts. None returns an object instead: `push(id)`
                returns a part, often empty, and `finish()` the rest.
            skip_special_tokens: Omit the text of special tokens.

        Raises:
            InvalidArgumentError: An id is not in the vocabulary; raised when the id arrives.
        """
        stream = self._table.stream(skip_special_tokens=skip_special_tokens)
        return stream if ids is None else parts_of(stream, ids)

    def token_to_id(self, token: str | bytes) -> int | None:
        """Returns the id of the token with this text or these bytes, or None."""
        if isinstance(token, str):
            token_id = self.special_tokens.get(token)
            return self._ids_by_bytes.get(token.encode()) if token_id is None else token_id
        return self._ids_by_bytes.get(token)

    def id_to_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of one token, which can be part of a character.

        Raises:
            InvalidArgumentError: The id is not in the vocabulary.
        """
        return self.decode_bytes([token_id])

    def id_to_piece(self, token_id: int) -> bytes:
        """Returns the bytes a token adds within a text, including a dropped leading space; empty for unknown ids."""
        return self._table.bytes(token_id) or b""

    def save(self, directory: StrPath) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers` opens with equal ids.

        Raises:
            FileError: A file cannot be written. An existing file stays complete, either old or new.
        """
        directory = Path(directory)
        write_text(directory / TOKENIZER_FILE, self.to_json())
        self.settings.save(directory)

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._facts())})"

    def _facts(self) -> list[str]:
        special = self.special_tokens
        more = f", … {len(special) - 4} more" if len(special) > 4 else ""
        return [f"vocab_size={self.vocab_size}", f"special_tokens=[{', '.join(map(repr, list(special)[:4]))}{more}]"]

    @functools.cached_property
    def _table(self) -> _rust.TokenTable:
        return _rust.TokenTable(self.token_bytes(), list(self.special_tokens.values()))

    @functools.cached_property
    def _ids_by_bytes(self) -> dict[bytes, int]:
        # Where two ids have the same bytes the lower one counts.
        listed = list(enumerate(self.token_bytes()))
        return {token: token_id for token_id, token in reversed(listed) if token is not None}

    def _plan(self, options: EncodeOptions) -> _rust.EncodePlan:
        key: object = tuple(options.items())
        try:
            plan = self._plans.get(key)
        except TypeError:  # a set or list of special tokens
            key = tuple((name, hashable(value)) for name, value in options.items())
            plan = self._plans.get(key)
        if plan is None:
            before = [self._role_id("bos", self.bos_id)] if options.get("add_bos") else []
            after = [self._role_id("eos", next(iter(self.eos_ids), None))] if options.get("add_eos") else []
            plan = encode_plan(options, self.special_tokens, (before, after))
            if len(self._plans) < MAX_PLANS:
                self._plans[key] = plan
        return plan

    def _encode_planned(self, text: str, plan: _rust.EncodePlan) -> NDArray[np.uint32]:
        plan.check(text)
        parts = [
            self._encode_ordinary(part) if isinstance(part, str) else np.array([part], np.uint32)
            for part in plan.split(text)
        ]
        ids = np.concatenate([np.zeros(0, np.uint32), *parts])
        own = ids[slice(*plan.kept(len(ids)))]
        before, after = (np.array(around, np.uint32) for around in plan.template)
        return np.concatenate([before, own, after])

    def _encode_flat(self, texts: list[str], plan: _rust.EncodePlan | None, num_threads: int | None) -> FlatIds:
        """Encodes texts one by one; tokenizers written in Python ignore `num_threads`."""
        del num_threads
        rows = [self._encode_ordinary(text) if plan is None else self._encode_planned(text, plan) for text in texts]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return FlatIds(np.concatenate([np.zeros(0, np.uint32), *rows]), offsets)

    def _offsets(
        self, ids: NDArray[np.uint32], text: str, plan: _rust.EncodePlan
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns byte and character offsets, (T, 2) each, of `ids` (T,), the uncut ids of `text` under `plan`."""
        del plan
        return self._table.offsets(ids, text)

    def _pad(self, rows: FlatIds, options: PadOptions) -> PaddedBatch:
        pad_id = options.get("pad_id")
        pad_id = self.pad_id if pad_id is None else pad_id
        if pad_id is None:
            raise InvalidArgumentError(
                "padding needs a tokenizer with a pad token, got one without\n"
                "hint: pass `pad_id`, such as `tokenizer.eos_ids[0]`: the attention mask says what is padding"
            )
        return pad_flat(rows, pad_id, options)

    def _role_id(self, role: str, token_id: int | None) -> int:
        if token_id is None:
            raise InvalidArgumentError(
                f"`add_{role}` needs a tokenizer with a {role} token, got one without\n"
                f"hint: its special tokens are {sorted(self.special_tokens)}; set `settings`"
            )
        return token_id
