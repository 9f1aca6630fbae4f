"""Let a served model call a function of yours, by OpenAI's client.

Usage: python examples/tools.py CHECKPOINT, of a model with a chat template
"""

import json
import sys

import openai

from llm.serving import ServerHandle
from llm.settings.server import ServerConfig

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two integers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
    }
]


def main(path: str) -> None:
    """The schema binds the arguments, so they always parse; `hermes` describes tools to models that know none."""
    messages = [{"role": "user", "content": "What is 2 plus 3?"}]
    with ServerHandle(path, ServerConfig(port=0, tool_parser="hermes")) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="not-needed")
        ask = {"model": client.models.list().data[0].id, "tools": TOOLS, "max_tokens": 96, "temperature": 0}
        first = client.chat.completions.create(messages=messages, tool_choice="required", **ask).choices[0].message
        call = first.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        result = arguments["a"] + arguments["b"]
        print(f"{call.function.name}({arguments['a']}, {arguments['b']}) = {result}")

        messages += [first, {"role": "tool", "tool_call_id": call.id, "content": str(result)}]
        last = client.chat.completions.create(messages=messages, tool_choice="none", **ask)
        print(last.choices[0].message.content)


if __name__ == "__main__":
    if len(sys.argv) != 2 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(sys.argv[1])
