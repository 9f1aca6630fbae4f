"""`llm generate`."""

from typing import Annotated

import typer

from llm.cli.options import (
    Dtype,
    FrequencyPenalty,
    MaxTokens,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    TypicalP,
)

EXAMPLE = 'Example:  llm generate runs/demo "ROMEO:" --max-tokens 80 --seed 1'


def generate(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint, run or .gguf file.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    typical_p: TypicalP = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
    include_stop: Annotated[bool, typer.Option("--include-stop", help="Print the stop text too.")] = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end token.")] = False,
    min_tokens: Annotated[int, typer.Option(min=0, help="No stop before this many new tokens.")] = 0,
    dtype: Dtype = "auto",
) -> None:
    """Continue a prompt; the answer appears as it is made."""
    from llm.api import LLM

    model = LLM(path, dtype)
    params = model.sampling_params(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        include_stop_str_in_output=include_stop,
        ignore_eos=ignore_eos,
        min_tokens=min_tokens,
    )
    for delta in model.stream(prompt, params):
        print(delta.text, end="", flush=True)
    print()


command = generate
