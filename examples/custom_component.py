"""Train a model with a feed-forward layer of your own, then reopen it.

Usage: python examples/custom_component.py corpus.txt runs/relu-squared
"""

import sys

from torch import Tensor, nn

from llm import LLM, ModelConfig, SamplingParams, registry, train


@registry.register("mlp", "relu_squared")
class ReluSquared(nn.Module):
    """Two projections with a squared ReLU between them.

    Source: So et al., "Primer: Searching for Efficient Transformers for Language Modeling" (2021).
    """

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:  # noqa: ARG002 -- every mlp takes both
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps [..., C] to [..., C]."""
        return self.down_proj(self.up_proj(hidden_states).relu().square())


def main(corpus: str, out: str) -> None:
    """Trains a tiny model; a program that opens the checkpoint later must register the class first."""
    settings = [
        "model.mlp=relu_squared",
        "model.hidden_size=64",
        "model.num_hidden_layers=2",
        "model.max_position_embeddings=64",
        "tokenizer.vocab_size=512",
    ]
    checkpoint = train(data=corpus, out=out, max_steps=20, overrides=settings)
    model = LLM(checkpoint)
    print(model.generate("ROMEO:\n", SamplingParams(max_tokens=24, seed=1)).text)


if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
