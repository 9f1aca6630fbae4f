"""What is tokenized: vocabularies, corpora and texts made from them, the same each time."""

import random
from dataclasses import dataclass, field
from pathlib import Path

CORPORA = {
    "prose": "tinyshakespeare.txt",
    "wiki": "enwiki_excerpt.txt",
    "code": "code_python_5mb.txt",
    "messages in 100 languages": "django_msgstr_multilingual.txt",
    "532 languages": "udhr_multilingual.txt",
}
WORST_CASES = ("a", "spaces", "newlines", "random letters", "ACGT", "CJK", "prose without spaces")
NUM_MESSAGES = 100_000


@dataclass(frozen=True)
class Vocabulary:
    """A published vocabulary: its files under the data directory, the expression that cuts text, special tokens."""

    name: str
    data: Path
    pattern: str = field(repr=False)
    special_tokens: dict[str, int]

    @property
    def ranks(self) -> Path:
        return self.data / "vocab" / f"{self.name}_base.tiktoken"

    @property
    def json(self) -> Path:
        return self.data / "derived" / f"{self.name}_tokenizer.json"


_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARIES = {
    "cl100k": (
        _CL100K,
        {
            "<|endoftext|>": 100_257,
            "<|fim_prefix|>": 100_258,
            "<|fim_middle|>": 100_259,
            "<|fim_suffix|>": 100_260,
            "<|endofprompt|>": 100_276,
        },
    ),
    "o200k": (_O200K, {"<|endoftext|>": 199_999, "<|endofprompt|>": 200_018}),
}


def vocabulary(name: str, data: Path) -> Vocabulary:
    return Vocabulary(name, data, *VOCABULARIES[name])


def corpus(name: str, data: Path) -> str:
    return (data / "corpus" / CORPORA[name]).read_bytes().decode()


def halves(text: str) -> tuple[str, str]:
    """Two halves, cut before a line that doesn't begin with white space."""
    cut = text.index("\n", len(text) // 2) + 1
    while text[cut].isspace():
        cut = text.index("\n", cut) + 1
    return text[:cut], text[cut:]


def messages(data: Path) -> list[str]:
    """100,000 messages of 50 to 400 characters from anywhere in the corpora, each corpus in turn."""
    draw = random.Random(0)
    texts = [corpus(name, data) for name in CORPORA]
    cut = []
    for index in range(NUM_MESSAGES):
        text = texts[index % len(texts)]
        start = draw.randrange(len(text) - 400)
        cut.append(text[start : start + draw.randint(50, 400)])
    return cut


def worst_case(name: str, num_bytes: int, data: Path) -> str:
    """Text that the patterns can't cut, or cut at one place only."""
    draw = random.Random(0)
    if name == "random letters":
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=num_bytes))
    if name == "ACGT":
        return "".join(draw.choices("ACGT", k=num_bytes))
    if name == "CJK":
        return "".join(map(chr, draw.choices(range(0x4E00, 0x9FA6), k=num_bytes // 3)))
    if name == "prose without spaces":
        letters = "".join(filter(str.isalpha, corpus("prose", data))).lower()
        return (letters * (num_bytes // len(letters) + 1))[:num_bytes]
    return {"a": "a", "spaces": " ", "newlines": "\n"}[name] * num_bytes


def write_mix(data: Path, target: Path) -> None:
    """The training text: the five corpora one after the other, in the order of the data's manifest."""
    order = ("prose", "wiki", "code", "messages in 100 languages", "532 languages")
    target.write_bytes(b"".join((data / "corpus" / CORPORA[name]).read_bytes() for name in order))
