"""Text files as training samples."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from llm.data.base import BaseDataModule, Dataset
from llm.data.batch import Batch, TokenBatch
from llm.data.readers import ReadOptions, corpus_files, read_pieces
from llm.data.shards import open_shard, write_shard
from llm.errors import DataError
from llm.tokenization import BaseTokenizer

_PIECE_CHARS = 1 << 20
_LINE_END = re.compile(r"(?<=\S)\n(?=[^\s/])")


def read_documents(paths: Sequence[str], options: ReadOptions | None = None) -> list[str]:
    """Returns the documents of every file that `paths` name (see `llm.data.readers`).

    Raises:
        DataError: There is no file, a file can't be read, or all files are empty.
        MissingExtraError: A file needs a package that is not installed.
    """
    if not paths:
        raise DataError("no training text was named\nhint: pass `--data PATH` (a file, a directory or a pattern)")
    files = corpus_files(paths)
    texts: list[list[str]] = [[]]
    for file in files:
        for piece in read_pieces(file, options or ReadOptions()):
            texts[-1].append(piece.text)
            texts += [[]] if piece.ends else []
    documents = ["".join(pieces) for pieces in texts if pieces]
    if not documents:
        raise DataError(f"the corpus is empty: {len(files)} file(s) without text in {', '.join(paths)}")
    return documents


def split_documents(documents: Sequence[str], validation_fraction: float) -> tuple[list[str], list[str]]:
    """Splits the concatenated documents by bytes into a training and a validation part, between two code points."""
    sizes = [len(document.encode()) for document in documents]
    border = sum(sizes) - round(sum(sizes) * validation_fraction)
    train, validation = [], []
    start = 0
    for document, size in zip(documents, sizes, strict=True):
        cut = len(document.encode()[: max(0, border - start)].decode(errors="ignore"))
        train += [document[:cut]] if cut else []
        validation += [document[cut:]] if cut < len(document) else []
        start += size
    return train, validation


class TokenWindows(Dataset):
    """Consecutive windows of `context_length` tokens; every token except the first is predicted exactly once."""

    def __init__(
        self, token_ids: NDArray[np.uint16] | NDArray[np.uint32], context_length: int, keep_rest: bool
    ) -> None:
        self.token_ids = token_ids
        self.context_length = context_length
        predicted = max(0, len(token_ids) - 1)
        self.num_windows = -(-predicted // context_length) if keep_rest else predicted // context_length

    def __len__(self) -> int:
        return self.num_windows

    def batch(self, indices: NDArray[np.int64]) -> TokenBatch:
        """Returns the windows at `indices`; the last window of the text can be shorter."""
        starts = [int(idx) * self.context_length for idx in indices]
        windows = [self.token_ids[start : start + self.context_length + 1].astype(np.int64) for start in starts]
        return TokenBatch(
            token_ids=torch.from_numpy(np.concatenate([window[:-1] for window in windows])),
            labels=torch.from_numpy(np.concatenate([window[1:] for window in windows])),
            lengths=tuple(len(window) - 1 for window in windows),
        )


class Limited(Dataset):
    """The first `num_samples` of another dataset."""

    def __init__(self, dataset: Dataset, num_samples: int) -> None:
        self.dataset = dataset
        self.num_samples = num_samples

    def __len__(self) -> int:
        return min(self.num_samples, len(self.dataset))

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Returns the samples at `indices`."""
        return self.dataset.batch(indices)


def encode_documents(documents: Iterable[str], tokenizer: BaseTokenizer) -> Iterator[NDArray[np.uint32]]:
    """Yields each document's ids, in pieces if it is long, then the end-of-text token if the tokenizer has one."""
    end = np.array(tokenizer.eos_ids[:1], dtype=np.uint32)
    for document in documents:
        borders = _piece_borders(document) if tokenizer.cuts_at_line_ends else [0, len(document)]
        for start, stop in pairwise(borders):
            yield tokenizer.encode_to_numpy(document[start:stop])
        yield end


def _piece_borders(document: str) -> list[int]:
    """Returns split points about `_PIECE_CHARS` apart that no built-in pre-tokenization pattern spans."""
    borders = [0]
    while match := _LINE_END.search(document, borders[-1] + _PIECE_CHARS):
        borders.append(match.end())
    return [*borders, len(document)]


class TextDataModule(BaseDataModule):
    """Text files that were tokenized once into memory-mapped shards under `directory`.

    Args:
        directory: Contains `train.bin` and `validation.bin`, which `prepare` writes.
        context_length: Number of tokens per sample.
        num_samples: Train on the first samples only; None uses all.
    """

    def __init__(self, directory: Path, context_length: int, num_samples: int | None = None) -> None:
        self.directory = directory
        self.context_length = context_length
        self.num_samples = num_samples

    @staticmethod
    def prepare(directory: Path, train: Sequence[str], validation: Sequence[str], tokenizer: BaseTokenizer) -> None:
        """Tokenizes both parts and writes them to `directory`."""
        for name, documents in (("train", train), ("validation", validation)):
            write_shard(directory / f"{name}.bin", encode_documents(documents, tokenizer), tokenizer.vocab_size)

    def train_dataset(self) -> Dataset:
        """Returns windows of the training part.

        Raises:
            DataError: The text is shorter than one sample.
        """
        token_ids = open_shard(self.directory / "train.bin")
        windows = TokenWindows(token_ids, self.context_length, keep_rest=False)
        if not len(windows):
            raise DataError(
                f"the training text has {len(token_ids)} tokens, one sample needs {self.context_length + 1}\n"
                "hint: add text or lower `data.context_length`"
            )
        return windows if self.num_samples is None else Limited(windows, self.num_samples)

    def validation_dataset(self) -> Dataset | None:
        """Returns windows of the held-out part, including a shorter last one."""
        windows = TokenWindows(open_shard(self.directory / "validation.bin"), self.context_length, keep_rest=True)
        return windows if len(windows) else None
