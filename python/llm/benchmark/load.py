"""The load: which requests a benchmark sends, and when."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from llm.errors import DataError
from llm.settings.benchmark import ServingBenchmark

# Short words are one token each in most vocabularies; a prompt of random ones has no beginning in the prefix cache.
_WORDS = (  # noqa: SIM905 - a list takes a line a word
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could "
    "people my than first water been call who oil its now find long down day did get come made may part"
).split()


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a prompt file or of a trace."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    arrival_s: Annotated[float, Meta(ge=0.0)] | None = None
    prompt_words: Annotated[int, Meta(ge=1)] | None = None
    output_tokens: Annotated[int, Meta(ge=1)] | None = None


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A request to send.

    Attributes:
        body: The JSON body.
        arrival_s: Seconds after the start at which the request arrives; None in a closed loop.
    """

    body: bytes
    arrival_s: float | None = None


def read_lines(path: str) -> list[Line]:
    """Reads prompts or a trace: JSON lines, or plain text with a prompt a line for names that don't end in `.jsonl`.

    Raises:
        DataError: The file can't be read, or a line holds something else.
    """
    try:
        texts = [text for text in Path(path).read_text(encoding="utf-8").splitlines() if text.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if not texts:
        raise DataError(f"{path} holds no requests")
    if not path.endswith(".jsonl"):
        return [Line(prompt=text) for text in texts]
    return [_line(path, number, text) for number, text in enumerate(texts, start=1)]


def _line(path: str, number: int, text: str) -> Line:
    try:
        return msgspec.json.decode(text, type=Line)
    except msgspec.DecodeError as error:
        raise DataError(f"line {number} of {path} is no request: {error}") from error


def planned(benchmark: ServingBenchmark, model: str, repeat: int) -> list[Planned]:
    """Returns the requests of a repeat in the order of their arrival; each repeat has prompts of its own.

    Raises:
        DataError: A file can't be read, or a line of the trace has no arrival.
    """
    chance = random.Random(f"{benchmark.seed}/{repeat}")  # noqa: S311 - a load, not a secret
    if benchmark.trace is not None:
        lines = sorted(_arrivals(benchmark.trace))
        return [Planned(body=_body(line, benchmark, model, chance), arrival_s=at) for at, _, line in lines]
    given = itertools.cycle(read_lines(benchmark.prompts) if benchmark.prompts else [Line()])
    bodies = [_body(line, benchmark, model, chance) for line in itertools.islice(given, benchmark.requests)]
    if benchmark.rate is None:
        return [Planned(body=body) for body in bodies]
    gaps = [chance.expovariate(benchmark.rate) for _ in bodies]
    arrivals = itertools.accumulate(gaps[:-1], initial=0.0)
    return [Planned(body=body, arrival_s=at) for body, at in zip(bodies, arrivals, strict=True)]


def _arrivals(path: str) -> Iterator[tuple[float, int, Line]]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.arrival_s is None:
            raise DataError(f"request {number} of {path} has no `arrival_s`\nhint: a prompt file goes to `prompts`")
        yield line.arrival_s, number, line


def _body(line: Line, benchmark: ServingBenchmark, model: str, chance: random.Random) -> bytes:
    words = line.prompt_words or benchmark.prompt_words
    prompt = line.prompt or " ".join(chance.choices(_WORDS, k=words))
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": line.output_tokens or benchmark.output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if benchmark.ignore_eos:
        body["ignore_eos"] = True
    if benchmark.endpoint == "completions":
        return msgspec.json.encode(body | {"prompt": prompt})
    return msgspec.json.encode(body | {"messages": line.messages or [{"role": "user", "content": prompt}]})
