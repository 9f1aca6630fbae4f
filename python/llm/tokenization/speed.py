"""Measures a tokenizer's speed, compared with tiktoken if tiktoken is installed and gives the same ids."""

import importlib.util
import json
import lzma
import os
import statistics
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

from rich.table import Table

from llm.errors import DataError
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.bpe import BPETokenizer

MAX_BYTES = 1 << 24
PART_CHARACTERS = 500
MIN_RUNS = 3
# `tokenizer.json` has no expression for GPT-2's pattern, which is built into Hugging Face's ByteLevel.
GPT2_EXPRESSION = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Speed(NamedTuple):
    """Speeds in megabytes (10⁶ bytes) of text per second."""

    work: str
    ours: float
    tiktoken: float | None


def sample_text() -> str:
    """Returns Tiny Shakespeare (public domain), which is included in the package."""
    packed = resources.files("llm").joinpath("assets", "tinyshakespeare.txt.xz").read_bytes()
    return lzma.decompress(packed).decode()


def measure_speed(
    tokenizer: BaseTokenizer, text: str, *, num_threads: int | None = None, seconds: float = 1.0
) -> list[Speed]:
    """Returns the median speed of each operation, measured for about `seconds` after one warm-up run.

    Args:
        tokenizer: The tokenizer to measure.
        text: The text to encode; only the first 16 MiB are used.
        num_threads: Number of threads for batches; None uses one per core.
        seconds: Duration of each measurement in seconds.

    Raises:
        DataError: The text is empty.
    """
    text = text.encode()[:MAX_BYTES].decode(errors="ignore")
    if not text:
        raise DataError("`text` must not be empty to measure speed, got an empty text")
    parts = [text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)]
    ids = tokenizer.encode(text)
    rows = tokenizer.encode_batch(parts)
    jobs: dict[str, Callable[[], object]] = {
        "encode to list": lambda: tokenizer.encode(text),
        "encode to array": lambda: tokenizer.encode_to_numpy(text),
        f"encode {len(parts)} texts": lambda: tokenizer.encode_batch(parts, num_threads=num_threads),
        f"encode {len(parts)} texts to array": lambda: tokenizer.encode_batch_flat(parts, num_threads=num_threads),
        "decode": lambda: tokenizer.decode(ids),
        f"decode {len(parts)} texts": lambda: tokenizer.decode_batch(rows, num_threads=num_threads),
    }
    twin = tiktoken_twin(tokenizer, text)
    theirs = {} if twin is None else _tiktoken_jobs(twin, text, parts, num_threads)
    num_bytes = len(text.encode())
    return [
        Speed(work, _speed(job, num_bytes, seconds), _speed(theirs[work], num_bytes, seconds) if twin else None)
        for work, job in jobs.items()
    ]


def speed_table(speeds: list[Speed]) -> Table:
    """Returns the measurements as a table."""
    table = Table("", "MB/s", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    compared = any(speed.tiktoken is not None for speed in speeds)
    if compared:
        table.add_column("tiktoken", justify="right")
        table.add_column("times as fast", justify="right")
    for work, ours, theirs in speeds:
        cells = [f"{theirs:.1f}", f"{ours / theirs:.1f}"] if theirs is not None else []
        table.add_row(work, f"{ours:.1f}", *cells)
    return table


def tiktoken_twin(tokenizer: BaseTokenizer, text: str) -> Any:
    """Returns a `tiktoken.Encoding` that gives the same ids for `text`, or None if that is impossible."""
    if not isinstance(tokenizer, BPETokenizer) or importlib.util.find_spec("tiktoken") is None:
        return None
    import tiktoken

    special = tokenizer.special_tokens
    tokens = enumerate(tokenizer.token_bytes())
    ranks = {token: rank for rank, token in tokens if token is not None and rank not in special.values()}
    try:
        twin = tiktoken.Encoding("twin", pat_str=_expression(tokenizer), mergeable_ranks=ranks, special_tokens=special)
        same = twin.encode_ordinary(text) == tokenizer.encode(text)
    except (ValueError, KeyError, TypeError):
        return None
    return twin if same else None


def _expression(tokenizer: BPETokenizer) -> str:
    """Returns the regular expression that splits text, for a backtracking engine."""
    if tokenizer.pattern == "gpt2":
        return GPT2_EXPRESSION
    splitter = json.loads(tokenizer.to_json())["pre_tokenizer"]["pretokenizers"][0]
    return str(splitter["pattern"]["Regex"])


def _tiktoken_jobs(twin: Any, text: str, parts: list[str], num_threads: int | None) -> dict[str, Callable[[], object]]:
    threads = num_threads or os.cpu_count() or 1
    ids, rows = twin.encode_ordinary(text), twin.encode_ordinary_batch(parts)

    def encode_parts() -> object:
        return twin.encode_ordinary_batch(parts, num_threads=threads)

    return {
        "encode to list": lambda: twin.encode_ordinary(text),
        "encode to array": lambda: twin.encode_to_numpy(text, disallowed_special=()),
        f"encode {len(parts)} texts": encode_parts,
        f"encode {len(parts)} texts to array": encode_parts,
        "decode": lambda: twin.decode(ids),
        f"decode {len(parts)} texts": lambda: twin.decode_batch(rows, num_threads=threads),
    }


def _speed(job: Callable[[], object], num_bytes: int, seconds: float) -> float:
    job()
    times: list[float] = []
    while len(times) < MIN_RUNS or sum(times) < seconds:
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return num_bytes / 1e6 / statistics.median(times)
