"""A corpus larger than memory should be: read, tokenized and trained on while memory stays flat."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from llm.demo import demo_corpus

pytestmark = pytest.mark.slow

GIGABYTES = float(os.environ.get("CORPUS_GB", "5"))
SETTINGS = (
    "model.hidden_size=64",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.max_position_embeddings=128",
    "tokenizer.vocab_size=4096",
    "tokenizer.sample_bytes=50000000",
    "training.max_steps=200",
    "training.batch_size=8",
    "training.validate_every=100",
)


def write_corpus(file: Path, num_bytes: float) -> None:
    """Shakespeare again and again, each time with another number in every line, in documents of 1 MB."""
    lines = demo_corpus().splitlines()
    with file.open("w", encoding="utf-8") as out:
        number = 0
        while out.tell() < num_bytes:
            number += 1
            out.write("".join(f"{line} {number}\n" for line in lines) + "<|endoftext|>\n")


def anonymous_megabytes(pid: int) -> float:
    """Memory of a process besides mapped files, which the system takes back whenever it needs to."""
    _, found, rest = Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")
    return int(rest.split()[0]) / 1024 if found else 0.0  # a process that has ended has no memory


@pytest.fixture
def directory() -> Iterator[Path]:
    """Removed even if the test fails, because it holds many gigabytes."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.timeout(7200)
def test_memory_stays_flat_over_a_long_corpus(directory: Path) -> None:
    corpus = directory / "corpus.txt"
    write_corpus(corpus, GIGABYTES * 1e9)
    code = "from llm.cli.main import main; main()"
    command = [sys.executable, "-c", code, "train", "--data", str(corpus), "--out", str(directory / "run"), *SETTINGS]
    started, curve = time.perf_counter(), []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while True:
        try:
            output = process.communicate(timeout=1)
            break
        except subprocess.TimeoutExpired:
            curve.append((time.perf_counter() - started, anonymous_megabytes(process.pid)))
    assert process.returncode == 0, output[1]
    shown = [[round(at), round(size)] for at, size in curve[:: max(1, len(curve) // 60)]]
    print("seconds and MB:", json.dumps(shown))
    sizes = [size for _, size in curve]
    early = max(sizes[: len(sizes) // 3])
    assert max(sizes) <= early + 300, f"memory grew from {early:.0f} to {max(sizes):.0f} MB"
