"""Serve a checkpoint and query it with OpenAI's client, with and without streaming.

Usage: python examples/openai_client_demo.py runs/demo
"""

import sys

import openai

from llm.serving import ServerHandle

MESSAGES = [{"role": "user", "content": "What news, my lord, from the king?"}]


def ask(client: openai.OpenAI, model: str) -> None:
    """Requests a complete answer."""
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=32, seed=1)
    print(answer.choices[0].message.content)
    print(f"[{answer.choices[0].finish_reason}; {answer.usage.completion_tokens} tokens]\n")


def stream(client: openai.OpenAI, model: str) -> None:
    """Streams the answer; the same seed gives the same text as `ask`."""
    options = {"include_usage": True}
    chunks = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=32, seed=1, stream=True, stream_options=options
    )
    for chunk in chunks:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        if chunk.usage:
            print(f"\n[{chunk.usage.completion_tokens} tokens]\n")


def continue_text(client: openai.OpenAI, model: str) -> None:
    """Completes plain text, which also works for models without a chat template."""
    print(client.completions.create(model=model, prompt="ROMEO:\n", max_tokens=32, stop="\n\n").choices[0].text)


def main(path: str) -> None:
    """Starts the server in its own process on a free port and queries it."""
    with ServerHandle(path) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="not-needed")
        model = client.models.list().data[0].id
        ask(client, model)
        stream(client, model)
        continue_text(client, model)


if __name__ == "__main__":
    if len(sys.argv) != 2 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(sys.argv[1])
