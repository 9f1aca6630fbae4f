"""`llm chat`."""

from typing import Annotated

import typer

from llm.cli.options import Dtype, MaxTokens, Seed, Temperature, TopK, TopP

EXAMPLE = 'Example:  llm chat runs/demo --message "What news from Verona?" --seed 1'


def chat(
    path: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint or run with a chat template.")],
    message: Annotated[str | None, typer.Option(help="Ask this, print the answer and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    dtype: Dtype = "auto",
) -> None:
    """Talk with a model; an empty line or Ctrl-D ends it."""
    from llm.api import LLM
    from llm.errors import ContextLengthError

    model = LLM(path, dtype)
    params = model.sampling_params(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
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
            print("(the conversation no longer fits the context; it begins anew)")
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
