"""`llm generate`."""

from typing import Annotated

import typer

from llm.cli.options import Dtype, MaxTokens, Seed, Temperature, TopK, TopP

EXAMPLE = 'Example:  llm generate runs/demo "ROMEO:" --max-tokens 80 --seed 1'


def generate(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint, run or .gguf file.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
    dtype: Dtype = "auto",
) -> None:
    """Continue a prompt; the answer appears as it is made."""
    from llm.api import LLM

    model = LLM(path, dtype)
    params = model.sampling_params(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=tuple(stop or ())
    )
    for delta in model.stream(prompt, params):
        print(delta.text, end="", flush=True)
    print()


command = generate
