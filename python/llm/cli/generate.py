"""`llm generate`."""

import sys
from typing import Annotated, Any

import typer

from llm.cli.form import FORM_FLAGS, FormOptions, form_of
from llm.cli.options import Dtype, Path, engine_of, with_engine_options, with_options
from llm.errors import InvalidArgumentError
from llm.settings.sampling import UNPRINTED, SamplingParams, with_form

EXAMPLE = 'Example:  llm generate runs/demo "ROMEO:" --max-tokens 80 --seed 1'


@with_options(
    SamplingParams,
    skip=UNPRINTED,
    flags={"include_stop_str_in_output": "--include-stop"},
    fallback=True,
)
@with_options(FormOptions, flags=FORM_FLAGS)
@with_engine_options
def generate(
    path: Path,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Text to continue; none or - reads standard input.")
    ] = None,
    dtype: Dtype = "auto",
    **sampling: Any,
) -> None:
    """Continue a prompt, printing the answer as it is generated."""
    from llm.api import LLM

    form = form_of(sampling)
    prompt = _piped() if prompt is None or prompt == "-" else prompt
    model = LLM(path, dtype, config=engine_of(sampling))
    for delta in model.stream(prompt, with_form(model.sampling_params(**sampling), form)):
        print(delta.text, end="", flush=True)
    print()


def _piped() -> str:
    """Returns standard input without its last line break, which `echo` and editors add."""
    if sys.stdin.isatty():
        print("(type the prompt, then Ctrl-D on a line of its own)", file=sys.stderr)
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"a prompt must be UTF-8, got an invalid byte at {error.start}") from error
    return text.removesuffix("\n").removesuffix("\r")


command = generate
