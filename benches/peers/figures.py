"""What a stream of packets says: when the first token came, how fast the others, and what all of a load adds up to."""

import bisect
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# When it came, and its bytes.
Packet = tuple[float, bytes]


class LoadError(Exception):
    """A server gave no answer that could be counted."""


@dataclass(frozen=True)
class Answer:
    """One streamed answer; times in seconds."""

    first_token_s: float
    inter_token_s: float
    prompt_tokens: int
    output_tokens: int
    text: str


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value that at least `share` of all are not above.

    Args:
        values: At least one.
        share: In [0, 1].
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def read_answer(packets: Sequence[Packet], started: float) -> Answer:
    """Reads a whole HTTP/1.1 response of server-sent events.

    Args:
        packets: As they came; the clock of their times is that of `started`.
        started: When the request was made.

    Raises:
        LoadError: Not a 200, cut off, an error in the stream, or no text or usage in it.
    """
    usage, pieces, stamps = None, [], []
    for stamp, event in _events(packets):
        if "error" in event:
            raise LoadError(f"the stream ended with an error: {event['error']}")
        usage = event.get("usage") or usage
        choices = event.get("choices") or []
        if choices and (piece := choices[0]["delta"].get("content")):
            pieces.append(piece)
            stamps.append(stamp)
    if usage is None or not stamps:
        raise LoadError(f"the stream has {len(stamps)} pieces of text and {'no' if usage is None else 'a'} `usage`")
    return Answer(
        first_token_s=stamps[0] - started,
        inter_token_s=(stamps[-1] - stamps[0]) / max(1, usage["completion_tokens"] - 1),
        prompt_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        text="".join(pieces),
    )


def check_status(packets: Sequence[Packet]) -> None:
    """Sees that an answer begins with a 200 and has a whole head.

    Raises:
        LoadError: Otherwise; it shows the answer's beginning.
    """
    start = b"".join(data for _, data in packets[:20])
    if start.split(b" ", 2)[1:2] != [b"200"] or b"\r\n\r\n" not in start:
        raise LoadError(f"got no 200 but {start[:400].decode(errors='replace')!r}")


def _events(packets: Sequence[Packet]) -> Iterator[tuple[float, dict[str, Any]]]:
    """The JSON of each event with the time its last byte came."""
    whole = b"".join(data for _, data in packets)
    check_status(packets)
    head, border, _ = whole.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    is_chunked = any(line.replace(" ", "") == "transfer-encoding:chunked" for line in lines[1:])
    body, ends, stamps = b"", [], []
    for stamp, piece in _pieces(packets, len(head) + len(border), is_chunked=is_chunked):
        body += piece
        ends.append(len(body))
        stamps.append(stamp)
    start = 0
    for line in body.split(b"\n"):
        start += len(line) + 1
        if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
            yield stamps[min(bisect.bisect_left(ends, start - 1), len(stamps) - 1)], json.loads(line[5:])


def _pieces(packets: Sequence[Packet], offset: int, *, is_chunked: bool) -> Iterator[Packet]:
    """The body's pieces, without the framing of chunks; each with the time its end came."""
    whole, ends, total = b"".join(data for _, data in packets), [], 0
    for _, data in packets:
        total += len(data)
        ends.append(total)
    if not is_chunked:
        for (stamp, data), end in zip(packets, ends, strict=True):
            yield stamp, data[max(0, len(data) - (end - offset)) :] if end > offset else b""
        return
    while True:
        size_end = whole.find(b"\r\n", offset)
        if size_end < 0:
            raise LoadError(f"the answer was cut off after {total} bytes")
        size = int(whole[offset:size_end].split(b";")[0], 16)
        if size == 0:
            return
        offset = size_end + 2 + size + 2
        if offset > total:
            raise LoadError(f"the answer was cut off after {total} bytes")
        yield packets[bisect.bisect_left(ends, offset - 2)][0], whole[offset - 2 - size : offset - 2]


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, float]:
    """A load's figures.

    Args:
        answers: At least one.
        seconds: From the first request to the last answer's end.
    """
    firsts = [answer.first_token_s for answer in answers]
    output = sum(answer.output_tokens for answer in answers)
    prompt = sum(answer.prompt_tokens for answer in answers)
    return {
        "requests": len(answers),
        "output_tokens_per_s": output / seconds,
        "total_tokens_per_s": (output + prompt) / seconds,
        "first_token_p50_s": percentile(firsts, 0.5),
        "first_token_p99_s": percentile(firsts, 0.99),
        "inter_token_p50_s": percentile([answer.inter_token_s for answer in answers], 0.5),
        "prompt_tokens": prompt / len(answers),
        "output_tokens": output / len(answers),
    }


def share_in_common(ours: str, theirs: str) -> float:
    """How much of our text theirs begins with, in [0, 1]."""
    pairs = zip(ours, theirs, strict=False)
    equal = next((idx for idx, (mine, other) in enumerate(pairs) if mine != other), min(len(ours), len(theirs)))
    return equal / max(1, len(ours))


def over_rounds(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians of several rounds' figures, and the spread of the throughput: (max - min) / median."""
    medians = {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
    rates = [figures["output_tokens_per_s"] for figures in rounds]
    return medians | {"rounds": len(rounds), "spread": (max(rates) - min(rates)) / medians["output_tokens_per_s"]}


def plain(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(answer) for answer in answers]
