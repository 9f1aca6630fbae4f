"""Train a small adapter in place of a model's weights, use it beside its base, and merge it.

Usage: python examples/lora.py SmolLM2-135M-Instruct.Q4_1.gguf runs/greeting
"""

import json
import sys
from pathlib import Path

from llm import LLM, SamplingParams, merge, sft

NAMES = ("Mira", "Tam", "Ines", "Pavel", "Sina", "Bea", "Otto", "Lucia", "Yusuf", "Greta", "Ada", "Nils")


def main(model: str, out: str) -> None:
    """Trains an adapter that greets people in a way of its own, compares sizes, and merges it into its base."""
    rows = Path(out).with_suffix(".jsonl")
    rows.parent.mkdir(parents=True, exist_ok=True)
    with rows.open("w", encoding="utf-8") as file:
        for name in NAMES:
            turns = [("user", f"Hello, I am {name}."), ("assistant", f"Ahoy, {name}! Welcome aboard.")]
            row = {"messages": [{"role": role, "content": content} for role, content in turns]}
            file.write(f"{json.dumps(row)}\n")
    settings = {"epochs": 6, "batch_size": 4, "packing": False, "validation_fraction": 0}
    adapter = sft(model, rows, out=out, overrides=["lora.rank=8"], **settings)
    size = (adapter.path / "adapter_model.safetensors").stat().st_size
    print(f"adapter: {size / 1e6:.2f} MB")

    # An adapter opens like a checkpoint; its base is found by what it keeps of it.
    question, params = [{"role": "user", "content": "Hello, I am Rosa."}], SamplingParams(temperature=0, max_tokens=20)
    alone = LLM(adapter).chat(question, params).text
    merged = Path(out).with_suffix(".merged")
    merge(adapter, merged)
    print(f"answer: {alone}")
    print(f"merged says the same: {LLM(merged).chat(question, params).text == alone}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
