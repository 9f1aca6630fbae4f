"""Answer every prompt of a JSON Lines file in one batch.

Each input line is an object with a "prompt"; each output line adds "text", "finish_reason" and "tokens".

Usage: python examples/batch_inference.py runs/demo prompts.jsonl answers.jsonl
"""

import json
import sys
from pathlib import Path

from llm import LLM


def main(path: str, prompts: str, answers: str) -> None:
    """Runs all prompts together; the engine schedules them, and a seed makes each answer repeatable."""
    rows = [json.loads(line) for line in Path(prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
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
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
