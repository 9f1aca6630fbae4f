"""Evaluates a model on files: JSONL files hold samples, all others are texts."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn

from llm.errors import DataError
from llm.evaluation.perplexity import perplexity
from llm.evaluation.report import Kind, Metric, Result
from llm.evaluation.samples import ChoiceSample, GenerationSample, read_samples
from llm.evaluation.tasks import generation, multiple_choice
from llm.inference import Session
from llm.progress import progress_bar
from llm.settings.evaluation import EvaluationConfig

Found = tuple[Kind, dict[str, Metric], list[Any]]
SAMPLES_SUFFIX = ".jsonl"


def evaluate_files(
    session: Session,
    files: Sequence[str | os.PathLike[str]],
    config: EvaluationConfig,
    *,
    progress: bool | None = None,
) -> list[Result]:
    """Evaluates a model on each file and returns one result per file.

    Args:
        session: The engine's session, which nothing else uses meanwhile.
        files: JSONL files of samples, and texts in UTF-8.
        config: How samples are presented.
        progress: Whether to show a progress bar; None shows one on a terminal.

    Raises:
        DataError: A file can't be read, or a line is no sample.
    """
    paths = [Path(file) for file in files]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} is no file")
    results = []
    with progress_bar(MofNCompleteColumn(), wanted=progress) as bar:
        for path in paths:
            task = bar.add_task(path.name, total=None)

            def expect(total: int, task: Any = task) -> Callable[[int], None]:
                bar.update(task, total=total)
                return lambda amount: bar.advance(task, amount)

            began = time.perf_counter()
            kind, metrics, samples = _evaluate(session, path, config, expect)
            results.append(
                Result(
                    data=os.fspath(path),
                    kind=kind,
                    num_samples=len(samples),
                    duration_s=time.perf_counter() - began,
                    metrics=metrics,
                    samples=samples,
                )
            )
    return results


def _evaluate(
    session: Session, path: Path, config: EvaluationConfig, expect: Callable[[int], Callable[[int], None]]
) -> Found:
    if path.suffix != SAMPLES_SUFFIX:
        text = _read(path)
        num_tokens = session.tokenizer.count_tokens(text)
        try:
            return ("perplexity", *perplexity(session, text, config.stride, expect(num_tokens)))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    samples = read_samples(path, config)
    advance = expect(len(samples) - config.shots)
    choices = [sample for sample in samples if isinstance(sample, ChoiceSample)]
    if choices:
        return ("multiple_choice", *multiple_choice(session, choices, config, advance))
    asked = [sample for sample in samples if isinstance(sample, GenerationSample)]
    return ("generation", *generation(session, asked, config, advance))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be UTF-8, but byte {error.start} can't be decoded") from error
