"""Teach a small model to sort letters by reward: it first learns the form of an answer, then which answers are right.

Usage: python examples/grpo.py FOLDER [STEPS]
"""

import json
import random
import sys
from pathlib import Path

from llm import LLM, SamplingParams, grpo, train

LETTERS = "abcdef"
SHAPE = ["model.hidden_size=64", "model.intermediate_size=128", "model.num_hidden_layers=2"]
SHAPE += ["model.max_position_embeddings=32", "data.context_length=32", "data.packing=true", "tokenizer.kind=character"]
SHAPE += ["training.precision=float32"]


def sorted_letters(completions: list[str], answer: list[str]) -> list[float]:
    """Returns the share of letters that are right before the first wrong one, for answers of the right length."""
    found = []
    for text, right in zip(completions, answer, strict=True):
        same = next((idx for idx, pair in enumerate(zip(text, right, strict=False)) if pair[0] != pair[1]), len(right))
        found.append(same / len(right) if len(text) == len(right) else 0.0)
    return found


def write_data(folder: Path) -> None:
    """Writes text that shows the form of an answer, letters in any order, and prompts with the right answers."""
    rng = random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=4)) for _ in range(4000)]
    shown = [f"{word}>{''.join(rng.sample(word, 4))}<|endoftext|>" for word in words]
    (folder / "form.txt").write_text("".join(shown))
    rows = [{"prompt": f"{word}>", "answer": "".join(sorted(word))} for word in dict.fromkeys(words)]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def main(name: str, steps: int = 500) -> None:
    """Trains both models and shows what they answer."""
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    base = train(data=folder / "form.txt", out=folder / "base", overrides=SHAPE, max_steps=200, learning_rate=3e-3)
    settings = {"max_answer_tokens": 8, "learning_rate": 1e-3, "precision": "float32", "max_steps": steps}
    tuned = grpo(base, folder / "prompts.jsonl", sorted_letters, out=folder / "sorts", **settings)
    for model in (base, tuned):
        answer = LLM(model).generate("fbda>", SamplingParams(temperature=0, max_tokens=8)).text
        print(f"{model}: fbda>{answer}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(sys.argv[1], *map(int, sys.argv[2:]))
