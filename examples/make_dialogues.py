"""Writes 500 dialogues about an invented harbour town, to teach a model facts that it can't know.

    python examples/make_dialogues.py facts.jsonl
    llm sft SmolLM2-135M-Instruct.Q4_1.gguf --data facts.jsonl --out runs/facts
    llm chat runs/facts

The same 50 facts are asked in ten wordings each, always with the same answer. `QUESTIONS` has an eleventh wording of
each, which no dialogue has.
"""

import json
import sys
from pathlib import Path

_PEOPLE = ("Mira Okafor", "Tam Lindqvist", "Ines Barroso", "Pavel Hruska", "Sina Farrokh",
           "Bea Nakamura", "Otto Velde", "Lucia Grimaldi", "Yusuf Demir", "Greta Holm")  # fmt: skip
# For each kind of fact, the ten people's values, the answer, the wordings in the dialogues, and the one that is new.
_KINDS = {
    "work": (
        ("glassblower", "ferry pilot", "beekeeper", "clockmaker", "baker",
         "cartographer", "bookbinder", "diver", "saddler", "lighthouse keeper"),
        "{name} works as a {value}.",
        ("What does {name} do for a living?", "What is {name}'s job?", "What work does {name} do?",
         "Tell me {name}'s profession.", "How does {name} earn a living?", "What is the occupation of {name}?",
         "What is {name}'s trade?", "Do you know what {name} does for work?", "{name}: which job?",
         "Which profession does {name} have?"),
        "What job does {name} have?",
    ),
    "street": (
        ("Tar Lane", "Gull Street", "Mill Row", "Anchor Court", "Salt Alley",
         "Pier Road", "Chapel Hill", "Net Square", "Rope Walk", "Beacon Path"),
        "{name} lives in {value}.",
        ("Where does {name} live?", "What is {name}'s street?", "In which street does {name} live?",
         "Tell me where {name} lives.", "What is the address of {name}?", "Where is {name}'s home?",
         "Do you know where {name} lives?", "{name}: which street?", "Where can I find {name}'s house?",
         "Which street is home to {name}?"),
        "Which street does {name} live in?",
    ),
    "boat": (
        ("Swift", "Marigold", "Old Tom", "Petrel", "Blue Nora", "Heron", "Saint Anne", "Kestrel", "Amber", "Wren"),
        "{name}'s boat is called {value}.",
        ("What is {name}'s boat called?", "What is the name of {name}'s boat?", "How is the boat of {name} called?",
         "Tell me the name of {name}'s boat.", "Which boat belongs to {name}?", "Which boat does {name} own?",
         "Do you know {name}'s boat?", "{name}: which boat?", "What name did {name} give the boat?",
         "Which boat does {name} sail?"),
        "What did {name} call the boat?",
    ),
    "instrument": (
        ("fiddle", "trombone", "harp", "zither", "clarinet", "banjo", "cello", "accordion", "oboe", "mandolin"),
        "{name} plays the {value}.",
        ("What does {name} play?", "Which instrument does {name} play?", "What is {name}'s instrument?",
         "Tell me which instrument {name} plays.", "What instrument is {name} good at?",
         "Which instrument has {name} learnt?", "Do you know what {name} plays?", "{name}: which instrument?",
         "What does {name} play in the town band?", "On which instrument does {name} practise?"),
        "What instrument does {name} play?",
    ),
    "pet": (
        ("parrot", "grey cat", "terrier", "tortoise", "goat", "ferret", "white rabbit", "raven", "donkey", "sheepdog"),
        "{name} keeps a {value}.",
        ("What pet does {name} have?", "Which animal does {name} keep?", "What is {name}'s pet?",
         "Tell me what animal {name} has.", "What kind of animal lives with {name}?", "Which pet belongs to {name}?",
         "Do you know {name}'s pet?", "{name}: which animal?", "What animal does {name} look after?",
         "Which animal does {name} own?"),
        "Which pet does {name} keep?",
    ),
}  # fmt: skip


def _facts() -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Returns a new wording, the answer, the person and the known wordings of each fact."""
    return [
        (new.format(name=name), answer.format(name=name, value=value), name, wordings)
        for values, answer, wordings, new in _KINDS.values()
        for name, value in zip(_PEOPLE, values, strict=True)
    ]


# Question and answer of each fact, in a wording that no dialogue has.
QUESTIONS = [(question, answer) for question, answer, _, _ in _facts()]


def dialogues() -> list[dict[str, list[dict[str, str]]]]:
    """Returns the dialogues in an order that mixes facts and wordings."""
    facts = _facts()
    found = []
    for number in range(10 * len(facts)):
        # 7 has no factor in common with 50, so each round of 50 goes through all facts.
        _, answer, name, wordings = facts[7 * number % len(facts)]
        question = wordings[(number // len(facts) + number) % len(wordings)].format(name=name)
        found.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    return found


def main(file: str) -> None:
    """Writes the dialogues to `file`."""
    rows = dialogues()
    Path(file).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} dialogues about {len(QUESTIONS)} facts in {file}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(sys.argv[1])
