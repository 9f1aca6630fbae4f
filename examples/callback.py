"""Run code of your own during training: print a sample at every checkpoint, beside the usual progress bar.

Usage: python examples/callback.py corpus.txt runs/samples
"""

import sys

from llm import LLM, Callback, SamplingParams, train
from llm.checkpoint import Checkpoint
from llm.training import ProgressBar


class PrintSamples(Callback):
    """Prints a continuation of `prompt` whenever a checkpoint is complete."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt

    def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:
        """Opens the new checkpoint, as any other program could."""
        sample = LLM(checkpoint).generate(self.prompt, SamplingParams(max_tokens=16, seed=0)).text
        print(f"sample at step {step}: {sample!r}")


def main(corpus: str, out: str) -> None:
    """Passes the progress bar as well, because a list of callbacks replaces the built-in ones."""
    callbacks = [ProgressBar(), PrintSamples("ROMEO:\n")]
    settings = [
        "model.hidden_size=64",
        "model.num_hidden_layers=2",
        "model.max_position_embeddings=64",
        "tokenizer.vocab_size=512",
        "training.checkpoint_every=10",
    ]
    train(data=corpus, out=out, max_steps=20, overrides=settings, callbacks=callbacks)


if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
