"""Let a small model learn the probabilities of a larger one, and compare it with one that has only the text.

Usage: python examples/distillation.py corpus.txt runs/distilled
"""

import sys
from pathlib import Path

from llm import train
from llm.checkpoint import Run

STEPS = {"max_steps": 40, "validate_every": 20, "context_length": 64, "batch_size": 8, "learning_rate": 3e-3}
LARGE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}


def main(corpus: str, out: str) -> None:
    """Trains a teacher, then two students of the same size, and prints the loss of each on held-out text."""
    runs = {name: Path(out) / name for name in ("teacher", "student", "alone")}
    teacher = train(data=corpus, out=runs["teacher"], **STEPS, **LARGE)
    same = {"tokenizer": teacher.path, **STEPS, **SMALL}  # a student reads its teacher's tokens
    train(data=corpus, out=runs["student"], teacher=str(teacher.path), overrides=["distillation.weight=0.5"], **same)
    train(data=corpus, out=runs["alone"], **same)
    for name, path in runs.items():
        losses = [line["validation_loss"] for line in Run(path).read_log() if "validation_loss" in line]
        print(f"{name}: validation loss {losses[-1]:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
