"""Tokenizing files into shards beside bare encoding of the same documents in memory, in turn.

    python benches/bench_data.py shared/data/corpus/*.txt [--tokenizers 16384 PATH ...] [--copies 4] [--runs 5]

The text is cut into documents of about 2 KB and written as plain text, JSON lines and Parquet (with pyarrow, compressed
by Snappy, its default, by Zstandard, and not at all). A tokenizer is a path, or a size to train on the text. Each round
encodes the documents in memory and then makes shards of each file: `shards` is the pass that writes ids, `scan` the one
before it, which counts documents and takes the checksum that names the shards. Each run checks that the shards hold the
ids of bare encoding. A ratio is the median over the rounds of the seconds that bare encoding takes as a share of the
others, by the clock and by the processor time of all threads. Results go to `benches/results/data.json` with `--write`.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.data.scan import Source, scan_corpus
from llm.data.shards import open_shard
from llm.data.tokenize import MANIFEST, tokenize_corpus
from llm.settings.run import DataConfig
from llm.tokenization import BaseTokenizer, BPETokenizer, load_tokenizer

DOCUMENT_CHARS = 2000
RESULTS = Path(__file__).parent / "results" / "data.json"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Seconds = dict[str, float]


def documents_of(text: str) -> Iterator[str]:
    """Cuts a text at line ends."""
    start = 0
    while start < len(text):
        stop = text.find("\n", start + DOCUMENT_CHARS) + 1 or len(text)
        if text[start:stop].strip():
            yield text[start:stop]
        start = stop


def written(documents: list[str], folder: Path) -> dict[str, Path]:
    """Writes the documents in each format."""
    plain, lines = folder / "text.txt", folder / "lines.jsonl"
    plain.write_text("<|endoftext|>\n".join(documents), encoding="utf-8")
    with lines.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n" for text in documents)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        print("Parquet is left out: pyarrow is not installed")
        return {"text": plain, "jsonl": lines}
    files = {"text": plain, "jsonl": lines}
    for compression in ("snappy", "zstd", "none"):
        table = folder / f"{compression}.parquet"
        parquet.write_table(pyarrow.table({"text": documents}), table, compression=compression)
        files[f"parquet, {compression}"] = table
    return files


def seconds(work: Callable[[], object]) -> Seconds:
    """Runs `work` once by each clock at the same time."""
    started = {name: clock() for name, clock in CLOCKS.items()}
    work()
    return {name: clock() - started[name] for name, clock in CLOCKS.items()}


def check(folder: Path, expected: NDArray[Any]) -> None:
    """Checks that shards hold the ids of bare encoding."""
    [source] = json.loads((folder / MANIFEST).read_text())["sources"]
    shards = [open_shard(folder / f"{name}.bin") for name in source["train"]]
    if not np.array_equal(np.concatenate(shards), expected):
        raise SystemExit("shards hold other ids than bare encoding gives")


def one_run(file: Path, tokenizer: BaseTokenizer, expected: NDArray[Any]) -> dict[str, Seconds]:
    """Times both passes over a file, into an empty folder."""
    with tempfile.TemporaryDirectory(dir=file.parent) as name:
        folder, found = Path(name), list[Source]()
        config = DataConfig(paths=(str(file),), validation_fraction=0.0)
        scan = seconds(lambda: found.extend(scan_corpus(config, folder, progress=False)))
        shards = seconds(lambda: tokenize_corpus(found, tokenizer, folder, progress=False))
        check(folder, expected)
    return {"scan": scan, "shards": shards, "both": {name: scan[name] + shards[name] for name in CLOCKS}}


def measure(
    tokenizer: BaseTokenizer, documents: list[str], files: dict[str, Path], runs: int, megabytes: float
) -> dict[str, Any]:
    """Measures each format beside bare encoding."""
    end = np.array(tokenizer.eos_ids[:1], np.uint32)
    rows = tokenizer.encode_batch_to_numpy(documents)
    expected = np.concatenate([part for row in rows for part in (row, end)])
    bare: list[Seconds] = []
    times: dict[str, list[dict[str, Seconds]]] = {kind: [] for kind in files}
    for _ in range(runs):
        bare.append(seconds(partial(tokenizer.encode_batch_flat, documents)))
        for kind, file in files.items():
            times[kind].append(one_run(file, tokenizer, expected))
    found: dict[str, Any] = {
        "bare": {name: megabytes / statistics.median(one[name] for one in bare) for name in CLOCKS}
    }
    for kind, rounds in times.items():
        found[kind] = {
            step: {
                clock: statistics.median(own[clock] / one[step][clock] for own, one in zip(bare, rounds, strict=True))
                for clock in CLOCKS
            }
            for step in ("shards", "both")
        }
    return found


def table(results: dict[str, Any]) -> str:
    """The ratios as a Markdown table."""
    lines = [
        "| vocabulary | format | shards, CPU | shards, wall | with the scan, CPU | wall |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        speed = found["bare"]
        lines.append(f"| {name} | bare encoding | {speed['cpu']:.0f} MB/s | {speed['wall']:.0f} MB/s | | |")
        for kind in [kind for kind in found if kind != "bare"]:
            row = [f"{found[kind][step][clock]:.2f}" for step in ("shards", "both") for clock in ("cpu", "wall")]
            lines.append(f"| {name} | {kind} | {' | '.join(row)} |")
    return "\n".join(lines)


def cpu_name() -> str:
    """The processor, as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--tokenizers", nargs="+", default=["16384"])
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    documents = list(documents_of("".join(file.read_text(encoding="utf-8") for file in given.texts) * given.copies))
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    results = {}
    with tempfile.TemporaryDirectory() as name:
        files = written(documents, Path(name))
        for one in given.tokenizers:
            train = partial(BPETokenizer.train, given.texts, progress=False)
            tokenizer = train(vocab_size=int(one)) if one.isdigit() else load_tokenizer(one)
            label = f"{one} trained" if one.isdigit() else Path(one).stem
            results[label] = measure(tokenizer, documents, files, given.runs, megabytes)
    facts = {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_before": round(load, 2)},
        "megabytes": round(megabytes, 1),
        "documents": len(documents),
        "runs": given.runs,
    }
    print(facts, table(results), sep="\n")
    if given.write:
        RESULTS.write_text(json.dumps(facts | {"ratios": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
