"""Generate text from a checkpoint: one prompt, a batch, a stream and a chat.

Usage: python examples/inference_demo.py runs/demo
"""

import sys

from llm import LLM


def main(path: str) -> None:
    """Generates from one prompt, a batch, a stream and a chat."""
    model = LLM(path)
    params = model.sampling_params(max_tokens=24, seed=1)

    print("— one prompt")
    output = model.generate("ROMEO:\n", params)
    print(output.text, f"[{output.finish_reason}, {output.usage.completion_tokens} tokens]")

    print("— a batch, run together")
    for answer in model.generate(["To be", "My lord", "The king"], params):
        print(repr(answer.text))

    print("— a stream")
    for delta in model.stream("JULIET:\n", params):
        print(delta.text, end="", flush=True)
    print()

    if model.tokenizer.chat_template:
        print("— a chat")
        print(model.chat([{"role": "user", "content": "What news?"}], params).text)


if __name__ == "__main__":
    if len(sys.argv) != 2 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(sys.argv[1])
