"""Teach a chat model to answer in a word or two, by pairs of a terse and a wordy answer.

Usage: python examples/dpo.py SmolLM2-135M-Instruct.Q4_1.gguf runs/terse
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from llm import LLM, SamplingParams, dpo

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Norway": "Oslo", "Poland": "Warsaw",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Greece": "Athens", "Austria": "Vienna", "Hungary": "Budapest",
    "Ireland": "Dublin", "Japan": "Tokyo", "China": "Beijing", "Egypt": "Cairo", "Kenya": "Nairobi", "Peru": "Lima",
    "Cuba": "Havana", "Canada": "Ottawa", "Chile": "Santiago", "Iran": "Tehran", "Iraq": "Baghdad",
    "Nepal": "Kathmandu", "Vietnam": "Hanoi",
}  # fmt: skip
WORDINGS = (
    "What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.",
    "Tell me the capital of {}.", "Do you know the capital of {}?",
)  # fmt: skip
WORDY = (
    "Sure! The capital of {} is {}. Let me know if you have any other questions!",
    "The capital of {} is {}, which is also one of its best-known cities.",
    "That is a great question. The capital city of {} is called {}.",
)


def pairs() -> Iterator[dict[str, str]]:
    """Yields questions, each with a terse answer that is chosen and a wordy one that is rejected."""
    for number, wording in enumerate(WORDINGS):
        for place, (country, capital) in enumerate(CAPITALS.items()):
            wordy = WORDY[(number + place) % len(WORDY)].format(country, capital)
            yield {"prompt": wording.format(country), "chosen": f"{capital}.", "rejected": wordy}


def main(model: str, out: str) -> None:
    """Trains on the pairs, the last 12 of which are held out, and asks about a country that none of them has."""
    rows = Path(out).with_suffix(".jsonl")
    rows.parent.mkdir(parents=True, exist_ok=True)
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in pairs()), encoding="utf-8")
    tuned = dpo(model, rows, out=out, validation_fraction=0.1)
    question, params = [{"role": "user", "content": "What is the capital of Denmark?"}], SamplingParams(temperature=0)
    for name, path in (("before", model), ("after", tuned)):
        print(f"{name}: {LLM(path).chat(question, params).text}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
