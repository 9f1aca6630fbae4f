"""Times tokenizing files into shards beside bare encoding of the same text in memory, in turn.

    python benches/bench_data.py shared/data/corpus/*.txt --tokenizer tokenizers/mine [--copies 4] [--runs 5]

The text is written as plain text, JSON lines and Parquet (with pyarrow), in documents of about 2 KB. `shards` is the
speed from files to shards; `scan` that of the pass before it, which counts documents and finds the names of shards.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from llm.data.scan import scan_corpus
from llm.data.shards import open_shard
from llm.data.tokenize import MANIFEST, tokenize_corpus
from llm.settings.run import DataConfig
from llm.tokenization import BaseTokenizer, load_tokenizer

DOCUMENT_CHARS = 2000


def documents_of(text: str) -> Iterator[str]:
    """Cuts a text at line ends."""
    start = 0
    while start < len(text):
        stop = text.find("\n", start + DOCUMENT_CHARS) + 1 or len(text)
        if text[start:stop].strip():
            yield text[start:stop]
        start = stop


def written(documents: list[str], folder: Path) -> list[Path]:
    """Writes the documents in each format."""
    plain, lines = folder / "text.txt", folder / "lines.jsonl"
    plain.write_text("<|endoftext|>\n".join(documents))
    lines.write_text("".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n" for text in documents))
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return [plain, lines]
    parquet.write_table(pyarrow.table({"text": documents}), folder / "table.parquet")
    return [plain, lines, folder / "table.parquet"]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def checked(folder: Path, expected: "np.ndarray") -> None:
    """Checks that shards hold the ids of bare encoding."""
    [source] = json.loads((folder / MANIFEST).read_text())["sources"]
    shards = [open_shard(folder / f"{name}.bin") for name in source["train"]]
    assert np.array_equal(np.concatenate(shards), expected), "shards hold other ids than bare encoding gives"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    tokenizer: BaseTokenizer = load_tokenizer(given.tokenizer)
    documents = list(documents_of("".join(file.read_text() for file in given.texts) * given.copies))
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    end = np.array(tokenizer.eos_ids[:1], np.uint32)
    rows = tokenizer.encode_batch_to_numpy(documents)
    expected = np.concatenate([part for row in rows for part in (row, end)])
    with tempfile.TemporaryDirectory() as name:
        files = written(documents, Path(name))
        times: dict[str, list[float]] = {}
        for _ in range(given.runs):
            times.setdefault("bare", []).append(seconds(lambda: tokenizer.encode_batch_flat(documents)))
            for file in files:
                with tempfile.TemporaryDirectory(dir=name) as out:
                    config, folder = DataConfig(paths=(str(file),), validation_fraction=0.0), Path(out)
                    found = []
                    scan = seconds(lambda c=config, f=folder, s=found: s.extend(scan_corpus(c, f)))
                    shards = seconds(lambda s=found, f=folder: tokenize_corpus(s, tokenizer, f, progress=False))
                    times.setdefault(f"{file.name} shards", []).append(shards)
                    times.setdefault(f"{file.name} scan", []).append(scan)
                    checked(folder, expected)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{megabytes:.1f} MB, {len(documents):,} documents, medians of {given.runs} runs in turn")
    print(f"bare encoding: {megabytes / medians['bare']:.0f} MB/s")
    for file in files:
        shards, scan = medians[f"{file.name} shards"], medians[f"{file.name} scan"]
        print(
            f"{file.name}: shards {megabytes / shards:.0f} MB/s ({medians['bare'] / shards:.2f} × bare), scan "
            f"{megabytes / scan:.0f} MB/s, both {medians['bare'] / (shards + scan):.2f} × bare"
        )


if __name__ == "__main__":
    main()
