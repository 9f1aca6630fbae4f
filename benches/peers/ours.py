"""How our own package is called in the bench: the one file to change with its interface."""

import base64
import functools
from pathlib import Path

from methods import Methods
from texts import Vocabulary

from llm import _rust
from llm.tokenization import BPETokenizer


@functools.cache
def _ranks(file: Path) -> list[bytes]:
    lines = (line.split() for line in file.read_bytes().splitlines())
    return [base64.b64decode(token) for token, _ in sorted(lines, key=lambda line: int(line[1]))]


def ours(vocabulary: Vocabulary, threads: int) -> Methods:
    core = _rust.Tokenizer.from_ranks(_ranks(vocabulary.ranks), vocabulary.special_tokens, vocabulary.name)
    tokenizer = BPETokenizer(core)
    return Methods(
        encode_list=tokenizer.encode,
        encode_array=tokenizer.encode_to_numpy,
        batch_list=functools.partial(tokenizer.encode_batch, num_threads=threads),
        batch_array=functools.partial(tokenizer.encode_batch_to_numpy, num_threads=threads),
        decode_list=tokenizer.decode,
        decode_array=tokenizer.decode,
    )


def train_ours(file: Path, split: str, threads: int, vocab_size: int) -> list[bytes]:
    tokenizer = BPETokenizer.train(
        file, vocab_size=vocab_size, pattern=split, special_tokens=(), num_threads=threads, progress=False
    )
    return [token for token in tokenizer.token_bytes() if token is not None]
