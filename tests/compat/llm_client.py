"""What a user of the command `llm` by Simon Willison does, against a server of this package.

It has the name of this package's own command, so it needs an environment of its own.
Usage: llm_client.py BASE_URL MODEL
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = """\
- model_id: {0}
  model_name: {0}
  api_base: {1}
  supports_schema: true
  supports_tools: true
"""
FUNCTIONS = '''
def weather(city: str) -> str:
    """Tells the weather."""
    return "fair in " + city
'''


def main() -> None:
    base_url, model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "extra-openai-models.yaml").write_text(MODELS.format(model, base_url))
        variables = os.environ | {"LLM_USER_PATH": directory}

        def said(*arguments: str) -> str:
            command = [sys.executable, "-m", "llm", *arguments, "-m", model, "--key", "any"]
            options = {"env": variables, "cwd": directory, "text": True, "stdin": subprocess.DEVNULL}
            return subprocess.run(command, check=True, capture_output=True, timeout=60, **options).stdout.strip()

        assert said("What news?") == "The tide is high."
        assert said("What news?", "--no-stream", "--system", "Be brief.") == "The tide is high."
        assert json.loads(said("A place, as JSON", "--schema", "city, days int")) == {"city": "Verona", "days": 2}
        for options in ((), ("--no-stream",)):
            assert said("How is Verona?", "--functions", FUNCTIONS, *options) == "It is fair in Verona."
    print("prompt, stream, system prompt, schema, tools")


main()
