"""The byte-level BPE tokenizer: any text has ids, and every id has bytes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llm import _rust
from llm.config import PatternName
from llm.errors import DataError
from llm.tokenization.base import BaseTokenizer, TokenIds
from llm.tokenization.corpus import batched_texts, corpus_files, read_corpus_file
from llm.tokenization.files import StrPath
from llm.tokenization.readers import ReadOptions, read_vocabulary
from llm.tokenization.settings import TokenizerSettings

DEFAULT_SPECIAL_TOKENS = ("<|endoftext|>",)


class BPETokenizer(BaseTokenizer):
    """Byte-level BPE in Rust; ids equal tiktoken's and Hugging Face's for the same vocabulary.

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
        progress: bool | None = None,
    ) -> Self:
        """Learns a vocabulary from text files. The same text gives the same tokenizer on any number of threads.

        Args:
            files: Files, directories (their `*.txt`) or patterns such as `corpus/*.txt`.
            vocab_size: Bytes (256), merges and special tokens together; fewer if the text has no pair left to merge.
            pattern: How text is cut into pieces that merges stay within: a name, or a regular expression in Oniguruma's
                syntax, as in `tokenizer.json`, whose matches and what lies between them are the pieces.
            special_tokens: Tokens that are never merged and never come from ordinary text.
            progress: Show a progress bar; None shows one on a terminal.

        Raises:
            DataError: A file is missing or not UTF-8, a pattern matches nothing, or there is no text.
            InvalidArgumentError: `vocab_size` is too small, or an unknown pattern.
            TokenizerError: A special token is empty, repeated or a single byte, or a regular expression does not
                compile or backtracks too much.
        """
        trainer = _rust.BPETrainer(vocab_size=vocab_size, pattern=pattern, special_tokens=list(special_tokens))
        paths = corpus_files(files)
        with _progress_bar(progress) as bar:
            return cls._train(trainer, _read_all(paths, bar), bar)

    @classmethod
    def train_from_iterator(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        pattern: PatternName | str = "gpt4",
        special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
        progress: bool | None = None,
    ) -> Self:
        """As `train`, from texts. No piece reaches over the end of a text.

        Raises:
            DataError: There is no text.
            InvalidArgumentError: An item is not text, `vocab_size` is too small, or an unknown pattern.
            TokenizerError: A special token is empty, repeated or a single byte, or a regular expression does not
                compile or backtracks too much.
        """
        trainer = _rust.BPETrainer(vocab_size=vocab_size, pattern=pattern, special_tokens=list(special_tokens))
        with _progress_bar(progress) as bar:
            return cls._train(trainer, texts, bar)

    @classmethod
    def _train(cls, trainer: _rust.BPETrainer, texts: Iterable[str], bar: Progress) -> Self:
        num_characters = 0
        for batch in batched_texts(texts):
            trainer.add(batch)
            num_characters += sum(map(len, batch))
        if num_characters == 0:
            raise DataError("a corpus must have text to learn from, got an empty one")
        return cls(trainer.train(_merge_reporter(bar)))

    @classmethod
    def from_pretrained(
        cls,
        path: StrPath,
        *,
        pattern: PatternName | str | None = None,
        special_tokens: Mapping[str, int] | None = None,
        allow_pickle: bool = False,
    ) -> Self:
        """Reads a tokenizer in any format.

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
        """One more than the highest id."""
        return self._core.vocab_size

    @property
    def pattern(self) -> str:
        """How text is cut into pieces: the name of a built-in pattern, else the regular expression."""
        return self._core.pattern

    @property
    def has_custom_pattern(self) -> bool:
        """Whether a general regular expression engine cuts the text, for want of a built-in pattern: slower."""
        return self.pattern not in get_args(PatternName)

    @property
    def cuts_at_line_ends(self) -> bool:
        """Whether long text may be encoded in parts; see `BaseTokenizer.cuts_at_line_ends`."""
        return self._core.cuts_at_line_ends

    @property
    def template(self) -> tuple[list[int], list[int]] | None:
        """Ids before and after a text where special tokens are asked for, as the file says; None if it says none."""
        return self._core.template

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids."""
        return dict(self._special_tokens)

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[NDArray[np.uint32]]:
        """The ids of each text, uint32 (T,) each, on all cores.

        Raises:
            InvalidArgumentError: A lone surrogate in a text.
        """
        return self._core.encode_batch(texts, allow_special)

    def decode_bytes(self, ids: TokenIds, *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of `ids`; see `BaseTokenizer.decode_bytes`."""
        return self._core.decode_bytes(ids, skip_special_tokens)

    def decode(self, ids: TokenIds, *, skip_special_tokens: bool = False) -> str:
        """The text of `ids`; see `BaseTokenizer.decode`."""
        return self._core.decode(ids, skip_special_tokens)

    def token_bytes(self) -> list[bytes | None]:
        """The bytes of each id."""
        return self._core.token_bytes()

    def to_json(self) -> str:
        """The vocabulary as Hugging Face's `tokenizer.json`."""
        return self._core.to_json()

    def _encode(self, text: str, allow_special: bool) -> NDArray[np.uint32]:
        return self._core.encode_to_numpy(text, allow_special)


def _progress_bar(progress: bool | None) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal if progress is None else progress),
    )


def _read_all(paths: Sequence[Path], bar: Progress) -> Iterator[str]:
    for path in bar.track(paths, description="Reading files"):
        yield read_corpus_file(path)


def _merge_reporter(bar: Progress) -> Callable[[int, int], None]:
    task = bar.add_task("Learning merges", total=None)

    def report(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    return report
