"""What every tokenizer can do, and all that the other floors may ask of one."""

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llm.errors import InvalidArgumentError, TokenizerError
from llm.tokenization.files import TOKENIZER_FILE, StrPath, write_text
from llm.tokenization.settings import TokenizerSettings

TokenIds: TypeAlias = Sequence[int] | NDArray[np.uint32]


class BaseTokenizer(abc.ABC):
    """Text to ids and back.

    A subclass gives the vocabulary: `vocab_size`, `special_tokens`, `token_bytes`, `decode_bytes`, `to_json`,
    `from_pretrained` and `_encode`. `settings` is the only thing that may change after it is made.
    """

    def __init__(self, settings: TokenizerSettings) -> None:
        self.settings = settings

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """One more than the highest id."""

    @property
    @abc.abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids."""

    @abc.abstractmethod
    def token_bytes(self) -> list[bytes | None]:
        """The bytes of each id; None for an id that has no text. Enough to detokenise, so any tokenizer can serve."""

    @abc.abstractmethod
    def decode_bytes(self, ids: TokenIds, *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of `ids` (T,), special tokens as their text or left out.

        Raises:
            InvalidArgumentError: An id that is not in the vocabulary.
        """

    @abc.abstractmethod
    def to_json(self) -> str:
        """The vocabulary as Hugging Face's `tokenizer.json`."""

    @classmethod
    @abc.abstractmethod
    def from_pretrained(cls, path: StrPath) -> Self:
        """Reads what `save` wrote: a directory, or its `tokenizer.json`, beside which `tokenizer_config.json` is read.

        Raises:
            FileError: There is no such file.
            TokenizerError: It has a component that is not supported, or is another kind of tokenizer.
        """

    @abc.abstractmethod
    def _encode(self, text: str, allow_special: bool) -> NDArray[np.uint32]:
        """The ids of `text`, uint32 (T,)."""

    @property
    def settings(self) -> TokenizerSettings:
        """Roles of special tokens and the chat template.

        Raises:
            TokenizerError: Set to settings that name a token which is not special here.
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

    @property
    def cuts_at_line_ends(self) -> bool:
        """Whether no token reaches over the end of a line between two that begin and end with neither space nor `/`.

        Then the parts of a long text have the ids of the whole.
        """
        return True

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text."""
        token = self.settings.bos_token
        return None if token is None else self.special_tokens[token]

    @property
    def pad_id(self) -> int | None:
        """The id that fills up a batch; never sampled."""
        token = self.settings.pad_token
        return None if token is None else self.special_tokens[token]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text; the first is the one to train with."""
        return tuple(self.special_tokens[token] for token in self.settings.eos_tokens)

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that writes a conversation as text."""
        return self.settings.chat_template

    @property
    def chat_stop(self) -> tuple[str, ...]:
        """Strings that end a turn of a conversation."""
        return self.settings.chat_stop

    def encode(
        self, text: str, *, add_bos: bool = False, add_eos: bool = False, allow_special: bool = False
    ) -> list[int]:
        """The ids of `text`.

        Args:
            text: Any Unicode text.
            add_bos: Begin with `bos_id`.
            add_eos: End with the first of `eos_ids`.
            allow_special: Special tokens in `text` become their id; else their text is encoded like any other, so text
                of strangers can't smuggle one in.

        Raises:
            InvalidArgumentError: A lone surrogate in `text`, or there is no token to add.
        """
        ids = self.encode_to_numpy(text, add_bos=add_bos, add_eos=add_eos, allow_special=allow_special)
        return list(map(int, ids.tolist()))

    def encode_to_numpy(
        self, text: str, *, add_bos: bool = False, add_eos: bool = False, allow_special: bool = False
    ) -> NDArray[np.uint32]:
        """As `encode`, as uint32 (T,) without a Python object per id."""
        ids = self._encode(text, allow_special)
        if not add_bos and not add_eos:
            return ids
        before = [self._role_id("bos", self.bos_id)] if add_bos else []
        after = [self._role_id("eos", next(iter(self.eos_ids), None))] if add_eos else []
        return np.concatenate([np.array(before, np.uint32), ids, np.array(after, np.uint32)])

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[NDArray[np.uint32]]:
        """The ids of each text, uint32 (T,) each."""
        return [self._encode(text, allow_special) for text in texts]

    def decode(self, ids: TokenIds, *, skip_special_tokens: bool = False) -> str:
        """The text of `ids` (T,); bytes that are not UTF-8 become U+FFFD.

        Raises:
            InvalidArgumentError: An id that is not in the vocabulary.
        """
        return self.decode_bytes(ids, skip_special_tokens=skip_special_tokens).decode("utf-8", "replace")

    def save(self, directory: StrPath) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers` opens with equal ids.

        Raises:
            FileError: They can't be written. A file that was there is whole, old or new.
        """
        directory = Path(directory)
        write_text(directory / TOKENIZER_FILE, self.to_json())
        self.settings.save(directory)

    def _role_id(self, role: str, token_id: int | None) -> int:
        if token_id is None:
            raise InvalidArgumentError(
                f"`add_{role}` needs a tokenizer with a {role} token, got one without\n"
                f"hint: its special tokens are {sorted(self.special_tokens)}; set `settings`"
            )
        return token_id
