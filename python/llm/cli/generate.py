"""`llm generate`."""

from typing import Annotated, Any

import typer

from llm.cli.options import Dtype, Path, with_options
from llm.settings.sampling import UNPRINTED, SamplingParams

EXAMPLE = 'Example:  llm generate runs/demo "ROMEO:" --max-tokens 80 --seed 1'


@with_options(
    SamplingParams,
    skip=UNPRINTED,
    flags={"include_stop_str_in_output": "--include-stop"},
    fallback=True,
)
def generate(
    path: Path,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.")],
    dtype: Dtype = "auto",
    **sampling: Any,
) -> None:
    """Continue a prompt, printing the answer as it is generated."""
    from llm.api import LLM

    model = LLM(path, dtype)
    for delta in model.stream(prompt, model.sampling_params(**sampling)):
        print(delta.text, end="", flush=True)
    print()


command = generate
