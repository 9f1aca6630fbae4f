"""The byte-level BPE tokenizer, which encodes every text losslessly."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from llm import _rust
from llm.settings.run import PatternName
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.blocks import BlockIds
from llm.tokenization.corpus import corpus_files
from llm.tokenization.files import StrPath
from llm.tokenization.learning import train_on_files, train_on_texts
from llm.tokenization.options import EncodeOptions, FlatIds, TokenIds, text_list
from llm.tokenization.readers import ReadOptions, read_vocabulary
from llm.tokenization.settings import TokenizerSettings

DEFAULT_SPECIAL_TOKENS = ("<|endoftext|>",)


class BPETokenizer(BaseTokenizer):
    """Byte-level BPE in Rust, with the ids of tiktoken and Hugging Face for the same vocabulary.

    Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016; on bytes
    as in Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """

    def __init__(self, core: _rust.Tokenizer, settings: TokenizerSettings | None = None) -> None:
        self._core = core
        self._special_tokens = core.special_tokens
        super().__init__(settings or TokenizerSettings.for_special_tokens(self._special_tokens))

    @classmethod
    def train(
        cls,
        files: StrPath | Iterable[StrPath],
        *,
        vocab_size: int,
        pattern: PatternName | str = "gpt4",
        special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
        min_frequency: int = 1,
        max_token_length: int | None = None,
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Trains a vocabulary on text files. The same text gives the same tokenizer on any number of threads.

        Files are read part by part, so memory is bounded by the distinct pieces of the text and not by its size; only a
        regular expression needs a whole file at a time. Ctrl-C ends it at any time.

        Args:
            files: Files, directories (their `*.txt`) or patterns such as `corpus/*.txt`.
            vocab_size: Bytes (256), merges and special tokens together; fewer if the text has no pair left to merge.
            pattern: How text is cut into pieces that merges stay within: a name, or a regular expression in Oniguruma's
                syntax, as in `tokenizer.json`, whose matches and what lies between them are the pieces.
            special_tokens: Tokens that are never merged and never come from ordinary text.
            min_frequency: A pair seen less often is not merged.
            max_token_length: Bytes of a merged token at most; None for any number.
            num_threads: Threads to use; None for one a core, or as many as `RAYON_NUM_THREADS` says.
            progress: Show a progress bar; None shows one on a terminal.

        Raises:
            DataError: A file is missing or not UTF-8, a pattern matches nothing, or there is no text.
            InvalidArgumentError: `vocab_size` is too small, another number not positive, or an unknown pattern.
            TokenizerError: A special token is empty, repeated or a single byte, or a regular expression does not
                compile or backtracks too much.
        """
        trainer = _rust.BPETrainer(
            vocab_size=vocab_size,
            pattern=pattern,
            special_tokens=list(special_tokens),
            min_frequency=min_frequency,
            max_token_length=max_token_length,
            num_threads=num_threads,
        )
        return cls(train_on_files(trainer, corpus_files(files), progress=progress))

    @classmethod
    def train_from_iterator(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        pattern: PatternName | str = "gpt4",
        special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
        min_frequency: int = 1,
        max_token_length: int | None = None,
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Trains a vocabulary on texts; pieces never span two texts. See `train`.

        Raises:
            DataError: There is no text.
            InvalidArgumentError: An item is not text, `vocab_size` is too small, another number not positive, or an
                unknown pattern.
            TokenizerError: A special token is empty, repeated or a single byte, or a regular expression does not
                compile or backtracks too much.
        """
        trainer = _rust.BPETrainer(
            vocab_size=vocab_size,
            pattern=pattern,
            special_tokens=list(special_tokens),
            min_frequency=min_frequency,
            max_token_length=max_token_length,
            num_threads=num_threads,
        )
        return cls(train_on_texts(trainer, texts, progress=progress))

    @classmethod
    def from_pretrained(
        cls,
        path: StrPath,
        *,
        pattern: PatternName | str | None = None,
        special_tokens: Mapping[str, int] | None = None,
        allow_pickle: bool = False,
    ) -> Self:
        """Opens a tokenizer in any format.

        Args:
            path: A directory (ours, Hugging Face's, or GPT-2's pair of files), a `tokenizer.json`, a rank file
                (`*.tiktoken`, Llama 3's `tokenizer.model`), `vocab.json` or `merges.txt`, or a `*.gguf` file.
            pattern: How text is cut, for a file that does not say it and is not a published one.
            special_tokens: Special tokens and their ids, for the same.
            allow_pickle: Read a pickled tokenizer; only plain values and tiktoken's `Encoding` are taken from it.

        Raises:
            FileError: There is no such file.
            TokenizerError: It is broken, of another kind, or has a component that is not supported (named).
        """
        options = ReadOptions(pattern=pattern, special_tokens=special_tokens, allow_pickle=allow_pickle)
        return cls(*read_vocabulary(path, options))

    @property
    def vocab_size(self) -> int:
        """Number of ids: one more than the highest id."""
        return self._core.vocab_size

    @property
    def pattern(self) -> str:
        """Split pattern: the name of a built-in one, or a regular expression."""
        return self._core.pattern

    @property
    def has_custom_pattern(self) -> bool:
        """Whether a general regular expression engine splits the text, which is slower than a built-in pattern."""
        return self.pattern not in get_args(PatternName)

    @property
    def cuts_at_line_ends(self) -> bool:
        """Whether long text can be encoded in parts; see `BaseTokenizer.cuts_at_line_ends`."""
        return self._core.cuts_at_line_ends

    @property
    def template(self) -> tuple[list[int], list[int]] | None:
        """Ids that the file adds before and after a text on request, or None."""
        return self._core.template

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids."""
        return dict(self._special_tokens)

    def encode(self, text: str, **options: Unpack[EncodeOptions]) -> list[int]:
        """Encodes `text` to a list of ids; see `BaseTokenizer.encode`."""
        if not options:
            return self._core.encode(text)
        ids: list[int] = self._core.encode_planned(text, self._plan(options)).tolist()
        return ids

    def encode_to_numpy(self, text: str, **options: Unpack[EncodeOptions]) -> NDArray[np.uint32]:
        """Encodes `text` to an array of ids; see `BaseTokenizer.encode_to_numpy`."""
        return self._core.encode_planned(text, self._plan(options)) if options else self._core.encode_to_numpy(text)

    def encode_batch(
        self, texts: Iterable[str], *, num_threads: int | None = None, **options: Unpack[EncodeOptions]
    ) -> list[list[int]]:
        """Encodes each text, on several threads with the GIL released; see `BaseTokenizer.encode_batch`."""
        return self._core.encode_batch(text_list(texts), self._plan(options) if options else None, num_threads)

    def decode(self, ids: TokenIds, *, skip_special_tokens: bool = False) -> str:
        """Decodes `ids` to text; see `BaseTokenizer.decode`."""
        return self._core.decode(ids, skip_special_tokens)

    def decode_batch(
        self, batch: Iterable[TokenIds], *, skip_special_tokens: bool = False, num_threads: int | None = None
    ) -> list[str]:
        """Decodes each row, on several threads with the GIL released; see `BaseTokenizer.decode_batch`."""
        rows = batch if isinstance(batch, list) else list(batch)
        return self._core.decode_batch(rows, skip_special_tokens, num_threads)

    def decode_bytes(self, ids: TokenIds, *, skip_special_tokens: bool = False) -> bytes:
        """Decodes `ids` to bytes; see `BaseTokenizer.decode_bytes`."""
        return self._core.decode_bytes(ids, skip_special_tokens)

    @property
    def core(self) -> _rust.Tokenizer:
        """The tokenizer's part in Rust, with which the engine cuts text that a grammar forces."""
        return self._core

    def token_bytes(self) -> list[bytes | None]:
        """Returns the bytes of each id."""
        return self._core.token_bytes()

    def to_json(self) -> str:
        """Returns the vocabulary as the text of Hugging Face's `tokenizer.json`."""
        return self._core.to_json()

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[str, TokenizerSettings]]:
        return type(self)._from_json, (self.to_json(), self.settings)

    @classmethod
    def _from_json(cls, text: str, settings: TokenizerSettings) -> Self:
        return cls(_rust.Tokenizer.from_json(text), settings)

    @functools.cached_property
    def _table(self) -> _rust.TokenTable:
        return self._core.token_table()

    def _facts(self) -> list[str]:
        size, special = super()._facts()
        return [size, f"pattern={self.pattern!r}", special]

    def _encode_ordinary(self, text: str) -> NDArray[np.uint32]:
        return self._core.encode_to_numpy(text)

    def _encode_planned(self, text: str, plan: _rust.EncodePlan) -> NDArray[np.uint32]:
        return self._core.encode_planned(text, plan)

    def _offsets(
        self, ids: NDArray[np.uint32], text: str, plan: _rust.EncodePlan
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        del ids  # the core encodes again: a token may come from other bytes than its own
        return self._core.offsets(text, plan)

    def encode_blocks(self, blocks: Sequence[_rust.TextBlock]) -> BlockIds:
        """Encodes pieces of documents on all cores, with the GIL released; see `BaseTokenizer.encode_blocks`."""
        end = self.eos_ids[0] if self.eos_ids else None
        return BlockIds(*self._core.encode_blocks(blocks, end, self.vocab_size > 2**16))

    def _encode_flat(self, texts: list[str], plan: _rust.EncodePlan | None, num_threads: int | None) -> FlatIds:
        return FlatIds(*self._core.encode_batch_flat(texts, plan, num_threads))
