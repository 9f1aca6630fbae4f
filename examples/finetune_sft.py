"""Teach a chat model facts from conversations, and ask it for one in other words.

Usage: python examples/finetune_sft.py SmolLM2-135M-Instruct.Q4_1.gguf runs/shop
"""

import json
import sys
from pathlib import Path

from llm import LLM, SamplingParams, sft

FACTS = {
    (
        "When does the shop open?",
        "What are the opening hours?",
        "At what time can I come?",
    ): "At nine, except on Monday.",
    ("Who owns the shop?", "Whose shop is it?", "Who is the boss?"): "Ines Barroso has owned it since 2011.",
    (
        "What does the shop sell?",
        "What can I buy there?",
        "Which goods do you have?",
    ): "Ropes, lamps and maps of the bay.",
    ("Where is the shop?", "What is the address?", "How do I find the shop?"): "At 4 Salt Alley, behind the old pier.",
}


def rows() -> list[dict[str, list[dict[str, str]]]]:
    """Returns a conversation for each wording of a question."""
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for questions, answer in FACTS.items()
        for question in questions
    ]


def main(model: str, out: str) -> None:
    """Fine-tunes on the conversations, and asks before and after."""
    data = Path(out).with_suffix(".jsonl")
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows()), encoding="utf-8")
    tuned = sft(model, data, out=out, epochs=8, batch_size=4, packing=False, validation_fraction=0)
    question, params = [{"role": "user", "content": "When is the shop open?"}], SamplingParams(temperature=0)
    for name, path in (("before", model), ("after", tuned)):
        print(f"{name}: {LLM(path).chat(question, params).text}")


if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
