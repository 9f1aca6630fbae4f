"""How each peer is called: text without special tokens in, ids out. The tables at the foot name them all."""

import base64
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from methods import Methods
from texts import Vocabulary


def _ours(vocabulary: Vocabulary, threads: int) -> Methods:
    from ours import ours

    return ours(vocabulary, threads)


@functools.cache
def _ranks(file: Path) -> dict[bytes, int]:
    lines = (line.split() for line in file.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _tiktoken(vocabulary: Vocabulary, threads: int) -> Methods:
    import tiktoken

    encoding = tiktoken.Encoding(
        vocabulary.name,
        pat_str=vocabulary.pattern,
        mergeable_ranks=_ranks(vocabulary.ranks),
        special_tokens=vocabulary.special_tokens,
    )
    to_array = functools.partial(encoding.encode_to_numpy, disallowed_special=())
    return Methods(
        encode_list=encoding.encode_ordinary,
        encode_array=to_array,
        batch_list=functools.partial(encoding.encode_ordinary_batch, num_threads=threads),
        batch_array=lambda texts: [to_array(text) for text in texts],
        decode_list=encoding.decode,
    )


def _tokenizers(vocabulary: Vocabulary, threads: int) -> Methods:  # noqa: ARG001  RAYON_NUM_THREADS bounds the threads
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(vocabulary.json))
    tokenizer.encode_special_tokens = True
    encode = functools.partial(tokenizer.encode, add_special_tokens=False)
    # The fast variant leaves offsets out.
    batch = functools.partial(tokenizer.encode_batch_fast, add_special_tokens=False)
    return Methods(
        encode_list=lambda text: encode(text).ids,
        batch_list=lambda texts: [encoding.ids for encoding in batch(texts)],
        decode_list=functools.partial(tokenizer.decode, skip_special_tokens=False),
    )


def _tokenizers_rc(vocabulary: Vocabulary, threads: int) -> Methods:  # noqa: ARG001
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(vocabulary.json))
    ordinary = {"add_special_tokens": False, "encode_special_tokens": True}
    encode = functools.partial(tokenizer.encode, **ordinary)
    batch = functools.partial(tokenizer.encode_batch, **ordinary)
    decode = functools.partial(tokenizer.decode, skip_special_tokens=False)
    return Methods(
        encode_list=lambda text: encode(text).ids,
        encode_array=lambda text: encode(text).ids_array,
        batch_list=lambda texts: [encoding.ids for encoding in batch(texts)],
        batch_array=lambda texts: [encoding.ids_array for encoding in batch(texts)],
        decode_list=decode,
        decode_array=decode,
    )


def _fastokens(vocabulary: Vocabulary, threads: int) -> Methods:  # noqa: ARG001
    import fastokens

    tokenizer = fastokens.Tokenizer.from_file(str(vocabulary.json))

    def batch_array(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = tokenizer.encode_batch_flat(texts, False, True)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64)

    return Methods(
        encode_list=lambda text: tokenizer.encode_ordinary(text).ids,
        encode_array=lambda text: np.frombuffer(tokenizer.encode_batch_flat([text], False, True)[0], np.uint32),
        batch_list=lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts, False, True)],
        batch_array=batch_array,
        decode_list=tokenizer.decode,
    )


def _gigatoken(vocabulary: Vocabulary, threads: int) -> Methods:
    import gigatoken

    tokenizer = gigatoken.Tokenizer.from_tiktoken(vocabulary.ranks)
    backend, parallel = tokenizer.backend, threads > 1

    def decode(ids: object) -> str:
        return backend.decode(ids).decode("utf-8", "replace")

    return Methods(
        encode_list=lambda text: backend.encode_batch_list([text], parallel=False)[0],
        encode_array=backend.encode,
        batch_list=functools.partial(backend.encode_batch_list, parallel=parallel),
        batch_array=functools.partial(backend.encode_batch, parallel=parallel),
        decode_list=decode,
        decode_array=decode,
    )


def _toktok(vocabulary: Vocabulary, threads: int) -> Methods:
    import toktok

    tokenizer = toktok._Tokenizer(f"{vocabulary.name}_base", "")
    to_buffer = functools.partial(tokenizer.encode_to_buffer, disallowed_special=())
    return Methods(
        encode_list=tokenizer.encode_ordinary,
        # Faster than its own encode_to_numpy.
        encode_array=lambda text: np.frombuffer(to_buffer(text), np.uint32),
        batch_list=(lambda texts: [tokenizer.encode_ordinary(text) for text in texts]) if threads == 1 else None,
        batch_array=functools.partial(tokenizer.encode_batch_to_numpy, threads=threads),
        decode_list=tokenizer.decode,
    )


def _tuetoken(vocabulary: Vocabulary, threads: int) -> Methods:  # noqa: ARG001
    import tuetoken

    tokenizer = tuetoken.Tokenizer(str(vocabulary.json))
    return Methods(decode_list=tokenizer.decode, decode_array=tokenizer.decode_array)


def _train_ours(file: Path, split: str, threads: int, vocab_size: int) -> list[bytes]:
    from ours import train_ours

    return train_ours(file, split, threads, vocab_size)


def _documents(file: Path) -> Iterator[str]:
    """The file in parts of about 64 KB that no piece reaches over, so that a trainer can share them among threads."""
    part: list[str] = []
    size = 0
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if size > 1 << 16 and not line[0].isspace():
                yield "".join(part)
                part, size = [], 0
            part.append(line)
            size += len(line)
    yield "".join(part)


def _train_rustbpe(file: Path, split: str, threads: int, vocab_size: int) -> list[bytes]:  # noqa: ARG001
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(_documents(file), vocab_size=vocab_size)
    return [bytes(token) for token, _ in tokenizer.get_mergeable_ranks()]


def _train_gigabpe(file: Path, split: str, threads: int, vocab_size: int) -> list[bytes]:  # noqa: ARG001
    import gigabpe

    vocab, _ = gigabpe.train_bpe(
        [str(file)], vocab_size=vocab_size, pretokenizer="bytelevel", special_tokens=[], threads=threads
    )
    return [_bytes_of(name) for name in vocab]


def _train_tokenizers(file: Path, split: str, threads: int, vocab_size: int) -> list[bytes]:  # noqa: ARG001
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(file)], trainer)
    return [_bytes_of(name) for name in tokenizer.get_vocab()]


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's way to write bytes as characters, backwards."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _bytes_of(name: str) -> bytes:
    return bytes(map(_byte_of_character().__getitem__, name))


# Contender by name: its distribution, whose version is reported, and how it is loaded.
CONTENDERS: dict[str, tuple[str, Callable[[Vocabulary, int], Methods]]] = {
    "ours": ("llm-oxide", _ours),
    "tiktoken": ("tiktoken", _tiktoken),
    "tokenizers": ("tokenizers", _tokenizers),
    "tokenizers-rc": ("tokenizers", _tokenizers_rc),
    "fastokens": ("fastokens", _fastokens),
    "gigatoken": ("gigatoken", _gigatoken),
    "toktok": ("toktok-rs", _toktok),
    "tuetoken": ("tuetoken", _tuetoken),
}
# Trainer by name: its distribution, how text is split where it has no choice, and how it is called.
TRAINERS: dict[str, tuple[str, tuple[str, ...], Callable[[Path, str, int, int], list[bytes]]]] = {
    "ours": ("llm-oxide", ("cl100k", "gpt2"), _train_ours),
    "rustbpe": ("rustbpe", ("cl100k",), _train_rustbpe),
    "gigabpe": ("gigabpe", ("gpt2",), _train_gigabpe),
    "tokenizers": ("tokenizers", ("gpt2",), _train_tokenizers),
}
