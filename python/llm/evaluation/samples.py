"""Samples of multiple choice and of generated answers, read from JSONL files."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from llm.errors import DataError
from llm.settings.evaluation import EvaluationConfig

SHOT_BORDER = "\n\n"


class ChoiceSample(msgspec.Struct, frozen=True, kw_only=True):
    """A context with choices, one of which is right.

    Attributes:
        context: Text before the choice, such as a question.
        choices: The choices.
        answer: Index of the right one.
    """

    context: str
    choices: Annotated[list[str], Meta(min_length=2)]
    answer: Annotated[int, Meta(ge=0)]

    def __post_init__(self) -> None:
        """Checks that the answer is one of the choices."""
        if self.answer >= len(self.choices):
            raise ValueError(f"`answer` must be below the number of choices {len(self.choices)}, got {self.answer}")

    @property
    def solution(self) -> str:
        """Returns the right choice."""
        return self.choices[self.answer]


class GenerationSample(msgspec.Struct, frozen=True, kw_only=True):
    """A context that the model continues, and the right answers.

    Attributes:
        context: Text to continue, such as a question.
        answer: The right answer, or all texts that are right.
    """

    context: str
    answer: str | Annotated[list[str], Meta(min_length=1)]

    @property
    def answers(self) -> list[str]:
        """Returns all texts that are right."""
        return [self.answer] if isinstance(self.answer, str) else self.answer

    @property
    def solution(self) -> str:
        """Returns the first right answer."""
        return self.answers[0]


Samples = list[ChoiceSample] | list[GenerationSample]


def read_samples(file: Path, config: EvaluationConfig) -> Samples:
    """Reads the samples that an evaluation needs from a JSONL file, of the kind of its first line.

    Raises:
        DataError: The file can't be read, a line is no sample, or no sample is left after the solved ones.
    """
    wanted = None if config.limit is None else config.limit + config.shots
    try:
        with file.open("rb") as lines:
            rows = list(islice(((at, line) for at, line in enumerate(lines, start=1) if line.strip()), wanted))
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror}") from error
    if len(rows) <= config.shots:
        raise DataError(f"{file} must hold more than {config.shots} samples (`shots`), got {len(rows)}")
    kind = ChoiceSample if b'"choices"' in rows[0][1] else GenerationSample
    return [_sample(line, kind, f"line {at} of {file}") for at, line in rows]  # type: ignore[return-value]


def with_shots(samples: Sequence[ChoiceSample | GenerationSample], config: EvaluationConfig) -> list[str]:
    """Returns the context of each sample after the first `shots`, with those and their solutions before it."""
    shown = [sample.context + joined(config.separator, sample.solution) for sample in samples[: config.shots]]
    return [SHOT_BORDER.join([*shown, sample.context]) for sample in samples[config.shots :]]


def joined(separator: str, answer: str) -> str:
    """Returns an answer with the separator before it, unless the answer begins with a space of its own."""
    return answer if answer[:1].isspace() else separator + answer


def _sample(
    line: bytes, kind: type[ChoiceSample] | type[GenerationSample], where: str
) -> ChoiceSample | GenerationSample:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        names = ", ".join(f"`{name}`" for name in kind.__struct_fields__)
        raise DataError(f"{where} must be a JSON object with {names}: {error}") from error
