"""Train a small language model on text, go on with it, and let it write.

Usage: python examples/pretrain.py corpus.txt runs/pretrained
"""

import sys

from llm import LLM, train

# Any setting of `llm train --settings` is a keyword here.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "context_length": 64,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "warmup_steps": 5,
}


def main(corpus: str, out: str) -> None:
    """Trains 40 steps, then resumes the run and trains 20 more."""
    train(data=corpus, out=out, max_steps=40, **SMALL)
    checkpoint = train(resume=out, max_steps=60)
    print("trained:", checkpoint.path)

    model = LLM(checkpoint)
    print(model.generate("First Citizen:\n", model.sampling_params(max_tokens=32, seed=1)).text)


if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
