"""Answer every prompt of a JSON Lines file in one batch.

Each input line is an object with a "prompt"; each output line adds "text", "finish_reason" and "tokens".

Usage: python examples/batch_inference.py runs/demo prompts.jsonl answers.jsonl
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm import LLM


def read_rows(file: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of the input, and ends the program at the first without a prompt."""
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
                sys.exit(f"{file}, line {number}: a row must be an object with a `prompt`, got {line.strip()[:60]}")
            yield row


def main(path: str, prompts: str, answers: str) -> None:
    """Runs all prompts together; the engine schedules them, and a seed makes each answer repeatable."""
    rows = list(read_rows(prompts))
    model = LLM(path)
    params = model.sampling_params(max_tokens=32, seed=1)
    outputs = model.generate([row["prompt"] for row in rows], params)
    with Path(answers).open("w", encoding="utf-8") as file:
        for row, output in zip(rows, outputs, strict=True):
            row |= {
                "text": output.text,
                "finish_reason": output.finish_reason,
                "tokens": output.usage.completion_tokens,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(rows)} answers in {answers}")


if __name__ == "__main__":
    if len(sys.argv) != 4 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
