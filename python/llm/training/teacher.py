"""A teacher's most probable next tokens, computed when they are first asked for and kept on disk."""

import errno
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm.checkpoint import Checkpoint
from llm.data import IGNORED_LABEL, TokenBatch
from llm.errors import CheckpointError, ConfigError, FileError
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.settings.distillation import DistillationConfig
from llm.tokenization import BaseTokenizer
from llm.training.precision import autocast
from llm.training.reference import weights_digest

# Part of a folder's name: what gives the same weights and tokens other numbers must raise it.
_VERSION = 1
_KEY_BYTES = 16
# Key of a sequence, number of its positions, checksum of what follows: ids as uint32, log-probabilities as float16.
_HEADER = struct.Struct(f"<{_KEY_BYTES}sII")
_BYTES_PER_TOKEN = 4 + 2


class Top(NamedTuple):
    """The most probable tokens at the learnt positions of a sequence, and their log-probabilities: `[N, K]` each."""

    ids: NDArray[np.uint32]
    values: NDArray[np.float16]


class Teacher:
    """A model whose next-token probabilities another one learns.

    Sequences are found again by a digest of their tokens and labels, so the order of samples, their packing and the
    number of processes may change. The model is loaded when the first sequence is unknown.

    Args:
        checkpoint: The teacher.
        settings: Temperature, and how many tokens of each position are kept.
        vocab_size: Number of tokens of the student; the teacher's others are left out.
        folder: Where probabilities are kept, and found by runs with the same teacher; None keeps none.
        dtype: Number type of the teacher's products.
        attention_backend: See `ForwardContext`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: DistillationConfig,
        vocab_size: int,
        folder: Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        attention_backend: str = "auto",
    ) -> None:
        self.checkpoint = checkpoint
        self.settings = settings
        self.top_k = min(settings.top_k, vocab_size)
        self._vocab_size = vocab_size
        self._folder = folder
        self._dtype = dtype
        self._attention_backend = attention_backend
        self._model: DecoderModel | None = None
        self._store: _Store | None = None

    def top(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Returns the teacher's most probable tokens at each position of a batch.

        Returns:
            Ids, int64 `[T, K]`, and log-probabilities, fp32 `[T, K]`; 0 where the label is ignored.

        Raises:
            FileError: The disk is full.
        """
        device = batch.token_ids.device
        tokens, labels = (torch.split(one.cpu(), list(batch.lengths)) for one in (batch.token_ids, batch.labels))
        keys = [_key(*pair) for pair in zip(tokens, labels, strict=True)]
        known = {key: self._opened.read(key) for key in keys}
        missing = [idx for idx, key in enumerate(keys) if known[key] is None]
        if missing:
            made = self._computed([tokens[idx] for idx in missing], [labels[idx] for idx in missing], device)
            for idx, one in zip(missing, made, strict=True):
                known[keys[idx]] = one
                self._opened.write(keys[idx], one)
        found = [cast(Top, known[key]) for key in keys]
        is_learnt = (batch.labels != IGNORED_LABEL)[:, None]
        ids = np.concatenate([one.ids for one in found]).astype(np.int64)
        logprobs = np.concatenate([one.values for one in found]).astype(np.float32)
        shape = (len(batch.labels), self.top_k)
        every = [torch.from_numpy(one).to(device) for one in (ids, logprobs)]
        places = [torch.zeros(shape, dtype=one.dtype, device=device) for one in every]
        all_ids, all_logprobs = (place.masked_scatter(is_learnt, one) for place, one in zip(places, every, strict=True))
        return all_ids, all_logprobs

    @torch.no_grad()
    def _computed(self, tokens: list[Tensor], labels: list[Tensor], device: torch.device) -> list[Top]:
        """Runs the teacher over sequences that are not known yet."""
        if self._model is None:
            model = self.checkpoint.model("float32", device)
            if not isinstance(model, DecoderModel):
                raise CheckpointError(f"`distillation.teacher` must be a decoder, got a {type(model).__name__}")
            self._model = model
        lengths = tuple(map(len, tokens))
        context = ForwardContext.for_sequences(lengths, attention_backend=self._attention_backend)
        with autocast(device, self._dtype):
            rows = self._model.hidden_states(torch.cat(tokens).to(device), positions_of(lengths, device), context)
            rows = rows[(torch.cat(labels) != IGNORED_LABEL).to(device)]
            ids, logprobs = self._model.top_logprobs(
                rows, self.top_k, temperature=self.settings.temperature, vocab_size=self._vocab_size
            )
        counts = [int((one != IGNORED_LABEL).sum()) for one in labels]
        parts = (torch.split(one.cpu(), counts) for one in (ids, logprobs))
        return [
            Top(one.numpy().astype(np.uint32), other.numpy().astype(np.float16))
            for one, other in zip(*parts, strict=True)
        ]

    @property
    def _opened(self) -> "_Store":
        if self._store is None:
            folder = None
            if self._folder is not None:
                made_from = [_VERSION, weights_digest(self.checkpoint), self._vocab_size, str(self._dtype)]
                made_from += [self.top_k, self.settings.temperature]
                digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]
                folder = self._folder / f"teacher-{digest}"
            self._store = _Store(folder, self.top_k)
        return self._store


class _Place(NamedTuple):
    """Where the probabilities of a sequence stand."""

    file: IO[bytes]
    offset: int
    num_positions: int


class _Store:
    """Files to which each process only appends; a record that was cut off is made anew."""

    def __init__(self, folder: Path | None, top_k: int) -> None:
        self._folder = folder
        self._top_k = top_k
        self._places: dict[bytes, _Place] = {}
        self._file: IO[bytes] | None = None
        for path in [] if folder is None else sorted(folder.glob("*.top")):
            if path.stat().st_size:
                self._places |= self._records(path.open("rb"))

    def read(self, key: bytes) -> Top | None:
        """Returns what is known of a sequence, or None."""
        if (place := self._places.get(key)) is None:
            return None
        place.file.seek(place.offset)
        content = place.file.read(self._size(place.num_positions))
        shape, count = (place.num_positions, self._top_k), place.num_positions * self._top_k
        ids = np.frombuffer(content, np.uint32, count)
        return Top(ids.reshape(shape), np.frombuffer(content, np.float16, count, ids.nbytes).reshape(shape))

    def write(self, key: bytes, top: Top) -> None:
        """Keeps a sequence."""
        if self._folder is None:
            return
        content = top.ids.tobytes() + top.values.tobytes()
        record = _HEADER.pack(key, len(top.ids), zlib.crc32(content)) + content
        try:
            self._file = self._file or self._new_file(self._folder)
            offset = self._file.seek(0, os.SEEK_END) + _HEADER.size
            if self._file.write(record) != len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise FileError(f"{self._folder}: the teacher's probabilities can't be kept: {error.strerror}") from error
        self._places[key] = _Place(self._file, offset, len(top.ids))

    def _records(self, file: IO[bytes]) -> Iterator[tuple[bytes, _Place]]:
        content, at = np.memmap(file, np.uint8, "r"), 0
        while at + _HEADER.size <= len(content):
            key, num_positions, checksum = _HEADER.unpack(content[at : at + _HEADER.size].tobytes())
            start = at + _HEADER.size
            at = start + self._size(num_positions)
            if at > len(content) or zlib.crc32(content[start:at].data) != checksum:
                return
            yield key, _Place(file, start, num_positions)

    def _size(self, num_positions: int) -> int:
        return num_positions * self._top_k * _BYTES_PER_TOKEN

    @staticmethod
    def _new_file(folder: Path) -> IO[bytes]:
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while True:
            try:
                return (folder / f"{number:06d}.top").open("x+b", buffering=0)
            except FileExistsError:
                number += 1


def check_teacher(checkpoint: Checkpoint, tokenizer: BaseTokenizer, context_length: int) -> None:
    """Checks that a teacher predicts tokens, the same ones as its student, in samples as long.

    Raises:
        ConfigError: It has another tokenizer or a shorter context, or is a reward model.
    """
    if checkpoint.is_reward_model:
        raise ConfigError(f"`distillation.teacher` must predict tokens, got the reward model {checkpoint}")
    longest = checkpoint.config.max_position_embeddings
    if longest < context_length:
        raise ConfigError(
            f"`distillation.teacher` must take samples of {context_length:,} tokens, got {checkpoint} for {longest:,}\n"
            f"hint: `data.context_length={longest}`"
        )
    theirs, own = checkpoint.tokenizer().token_bytes(), tokenizer.token_bytes()
    if theirs == own:
        return
    differs = [idx for idx, pair in enumerate(zip(theirs, own, strict=False)) if pair[0] != pair[1]]
    if differs:
        idx = differs[0]
        words = f"token {idx} is {theirs[idx]!r} there and {own[idx]!r} here"
    else:
        words = f"it has {len(theirs)} tokens, and the student {len(own)}"
    raise ConfigError(
        f"`distillation.teacher` must have the student's tokenizer, got {checkpoint}: {words}\n"
        f"hint: train the student with the teacher's: `tokenizer.path={checkpoint.path}`"
    )


def _key(tokens: Tensor, labels: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for one in (tokens, labels):
        digest.update(one.numpy().astype("<i8").tobytes())
    return digest.digest()
