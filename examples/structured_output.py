"""Bind answers to a JSON schema, a regular expression and a list of choices.

Usage: python examples/structured_output.py runs/demo
"""

import json
import sys

from llm import LLM, StructuredOutputs

ROLE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "mood": {"enum": ["merry", "grim"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}


def main(path: str) -> None:
    """Each finished answer has the form that was asked for, whatever the model would rather say."""
    model = LLM(path)

    def ask(prompt: str, form: StructuredOutputs) -> str:
        params = model.sampling_params(max_tokens=96, seed=1, structured_outputs=form)
        return model.generate(prompt, params).text

    role = json.loads(ask("Describe a role of the play.", StructuredOutputs(json=ROLE)))
    print("schema:", sorted(role), role["mood"])
    print("regex:", ask("The year was", StructuredOutputs(regex=" 1[5-6][0-9]{2}")))
    print("choice:", ask("Who speaks?", StructuredOutputs(choice=("ROMEO", "JULIET"))))


if __name__ == "__main__":
    if len(sys.argv) != 2 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(sys.argv[1])
