"""Masks for JSON schemas at a vocabulary of 128,000 tokens, beside XGrammar, on one thread and the same documents.

`python benches/bench_grammar.py [--schemas 100] [--xgrammar PYTHON]` writes `benches/results/grammar.json` and prints a
table: the time of a mask, and of a grammar from its schema to its first mask. The documents are compact JSON of our own
constrained answers, cut by the tokenizer of the vocabulary; both sides allow white space anywhere. PYTHON is an
interpreter with `xgrammar` (`pip install xgrammar==0.2.8`); without it, only our side is measured.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from llm import LLM, BPETokenizer, SamplingParams, StructuredOutputs

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.schemas.generated import SchemaMaker  # noqa: E402 - after the root is in the path

VOCABULARY = ROOT / ".cache" / "tokenizer.model"
RESULTS = ROOT / "benches" / "results" / "grammar.json"
WRITER = ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_TOKENS = 300


def workload(num_schemas: int) -> list[dict[str, object]]:
    """Schemas of the generated kinds, each with a finished answer that follows it."""
    maker = SchemaMaker(seed=7)
    schemas = [maker.root() for _ in range(num_schemas)]
    params = [
        SamplingParams(seed=at, max_tokens=MAX_TOKENS, structured_outputs=StructuredOutputs(json=schema))
        for at, schema in enumerate(schemas)
    ]
    answers = LLM(WRITER).generate(["Answer in JSON: "] * num_schemas, params)
    tokenizer = BPETokenizer.from_pretrained(VOCABULARY)
    cases = []
    for schema, answer in zip(schemas, answers, strict=True):
        if answer.finish_reason == "stop":
            text = json.dumps(json.loads(answer.text), separators=(",", ":"), ensure_ascii=False)
            cases.append({"schema": schema, "ids": tokenizer.encode(text)})
    return cases


def ours(cases: Path) -> dict[str, object]:
    """Our masks, timed in Rust."""
    command = ["cargo", "bench", "--quiet", "--bench", "grammar", "--", str(VOCABULARY), str(cases)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def theirs(python: str, cases: Path) -> dict[str, object]:
    """XGrammar's masks, timed by its own process."""
    command = [python, str(ROOT / "benches" / "peers" / "xgrammar_masks.py"), str(VOCABULARY), str(cases)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def figures(times: dict[str, list[int]]) -> dict[str, float]:
    """Means and percentiles, in microseconds and milliseconds."""
    masks, made = sorted(times["masks"]), sorted(times["compilations"])
    return {
        "masks": len(masks),
        "mask mean µs": round(statistics.mean(masks) / 1e3, 1),
        "mask p50 µs": round(statistics.median(masks) / 1e3, 1),
        "mask p99 µs": round(masks[len(masks) * 99 // 100] / 1e3, 1),
        "ready p50 ms": round(statistics.median(made) / 1e6, 2),
        "ready p99 ms": round(made[len(made) * 99 // 100] / 1e6, 2),
        "refused schemas": times.get("refused", 0),
    }


def main() -> None:
    """Measures both sides, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=100)
    parser.add_argument("--xgrammar", metavar="PYTHON")
    options = parser.parse_args()
    cases = workload(options.schemas)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "cases.json"
        file.write_text(json.dumps(cases), encoding="utf-8")
        rows = {"llm-oxide": figures(ours(file))}
        if options.xgrammar:
            rows["XGrammar 0.2.8"] = figures(theirs(options.xgrammar, file))
    for name, row in rows.items():
        print(f"{name:16} " + "  ".join(f"{key} {value:,.3g}" for key, value in row.items()))
    about = {"machine": platform.processor() or platform.machine(), "load": os.getloadavg()[0], "cases": len(cases)}
    RESULTS.write_text(
        json.dumps({"about": about, "rows": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
