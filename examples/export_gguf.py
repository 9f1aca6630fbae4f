"""Export a checkpoint as a GGUF file for llama.cpp, and check that the file gives the same answer here.

Usage: python examples/export_gguf.py runs/demo demo.gguf
"""

import shlex
import sys

from llm import LLM, SamplingParams
from llm.export import export

PROMPT = "ROMEO:\n"


def main(path: str, out: str) -> None:
    """Writes the weights in full precision; `quantization="q8_0"` makes the file four times smaller."""
    file = export(path, out, "gguf", quantization="f32")
    params = SamplingParams(max_tokens=16, temperature=0.0)
    original, reopened = (LLM(source, dtype="float32").generate(PROMPT, params) for source in (path, file))
    print(f"{file}: {file.stat().st_size:,} bytes")
    print(f"same tokens: {original.token_ids == reopened.token_ids}")
    print(f"next:  llama-cli -m {shlex.quote(str(file))} -p 'ROMEO:' -n 80")


if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
