"""The rows of the bench: what is timed, in which process, and the bar for ours against the fastest peer.

A group's rows are timed by one process, each with a tokenizer of its own. Names that share a beginning can be asked
for together: `--only encode-array`.
"""

from dataclasses import dataclass

from texts import CORPORA, WORST_CASES

SHORT, LONG = 100_000, 1_000_000
VOCAB_SIZE = 32_000


@dataclass(frozen=True)
class Group:
    """Rows of one kind. `bar` is the least that the fastest peer's time over ours may be."""

    name: str
    method: str
    rows: tuple[str, ...]
    bar: float
    must_tiktoken: float = 0.0
    """The least that tiktoken's time over ours must be; 0 where there is no such limit."""
    threads: int = 1
    unit: str = "MB/s"


_ENCODE = [
    Group(f"encode-{output}-{state}", f"encode_{output}", rows, bar, must)
    for output, bar, warm_must in (("array", 1.1, 8.0), ("list", 1.0, 5.0))
    for state, rows, must in (
        ("warm", tuple(CORPORA), warm_must),
        ("cold", tuple(CORPORA), 4.0),
        ("fresh", ("wiki",), 0.0),
    )
]
_CHAT = [
    *(Group(f"chat-one-{output}", f"encode_{output}", ("messages",), 1.1, unit="µs") for output in ("list", "array")),
    *(
        Group(f"chat-batch-{output}-{threads}", f"batch_{output}", ("messages",), 1.1, threads=threads)
        for output in ("list", "array")
        for threads in (1, 2)
    ),
]
_DECODE = [
    *(Group(f"decode-long-{kind}", f"decode_{kind}", ("wiki", "532 languages"), 1.1) for kind in ("list", "array")),
    *(Group(f"decode-65-{kind}", f"decode_{kind}", ("prose",), 1.1, unit="µs") for kind in ("list", "array")),
]
_WORST = [Group(f"worst-{size}", "encode_any", WORST_CASES, 1 / 1.2, unit="ms") for size in (f"{LONG}", f"{SHORT}")]
_TRAIN = [
    Group(f"train-{split}-{threads}", split, ("22 MB mix",), bar, threads=threads, unit="s")
    for split, bar in (("cl100k", 2.0), ("gpt2", 1.1))
    for threads in (1, 2)
]
GROUPS = {group.name: group for group in (*_ENCODE, *_CHAT, *_DECODE, *_WORST, *_TRAIN)}


def selected(only: str | None) -> list[Group]:
    """The groups whose names begin with one of the comma-separated words."""
    words = tuple(only.split(",")) if only else ("",)
    groups = [group for group in GROUPS.values() if group.name.startswith(words)]
    if not groups:
        raise SystemExit(f"error: --only must name groups, got {only!r}\nhint: they are {', '.join(GROUPS)}")
    return groups
