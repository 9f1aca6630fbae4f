"""`llm chat`."""

from typing import Annotated, Any

import typer

from llm.cli.options import Dtype, Path, with_options
from llm.settings.sampling import UNPRINTED, SamplingParams

EXAMPLE = 'Example:  llm chat runs/demo --message "What news from Verona?" --seed 1'


@with_options(
    SamplingParams,
    skip=UNPRINTED,
    flags={"include_stop_str_in_output": "--include-stop"},
    fallback=True,
)
def chat(
    path: Path,
    message: Annotated[str | None, typer.Option(help="Send one message, print the answer and exit.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    dtype: Dtype = "auto",
    **sampling: Any,
) -> None:
    """Chat with a model that has a chat template. An empty line or Ctrl-D ends the conversation."""
    from llm.api import LLM
    from llm.errors import ContextLengthError

    model = LLM(path, dtype)
    params = model.sampling_params(**sampling)
    messages = [{"role": "system", "content": system}] if system else []
    while (text := message if message is not None else _ask()) is not None:
        messages.append({"role": "user", "content": text})
        answer = ""
        try:
            for delta in model.stream_chat(messages, params):
                answer += delta.text
                print(delta.text, end="", flush=True)
        except ContextLengthError:
            if len(messages) == 1 or message is not None:
                raise
            print("(the conversation no longer fits the context; starting a new one)")
            messages = messages[:1] if system else []
            continue
        print()
        if message is not None:
            return
        messages.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    try:
        return input("> ").strip() or None
    except EOFError:
        return None


command = chat
