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


def ours(vocabulary: Vocabulary, threads: int) -> Methods:  # noqa: ARG001  RAYON_NUM_THREADS bounds the threads
    core = _rust.Tokenizer.from_ranks(_ranks(vocabulary.ranks), vocabulary.special_tokens, vocabulary.name)
    tokenizer = BPETokenizer(core)
    return Methods(
        encode_list=tokenizer.encode,
        encode_array=tokenizer.encode_to_numpy,
        batch_list=lambda texts: [ids.tolist() for ids in tokenizer.encode_batch(texts)],
        batch_array=tokenizer.encode_batch,
        decode_list=tokenizer.decode,
        decode_array=tokenizer.decode,
    )


def train_ours(file: Path, split: str, threads: int, vocab_size: int) -> list[bytes]:  # noqa: ARG001  as above
    tokenizer = BPETokenizer.train(file, vocab_size=vocab_size, pattern=split, special_tokens=(), progress=False)
    return [token for token in tokenizer.token_bytes() if token is not None]
