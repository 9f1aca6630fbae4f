"""Evaluation and serving of checkpoints."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm.evaluation import Report, evaluate_files
from llm.inference import (
    EngineConfig,
    Session,
    load_engine,
)
from llm.settings.evaluation import evaluation_config
from llm.settings.paths import check_file
from llm.settings.server import server_config
from llm.tokenization.files import write_bytes

Message = dict[str, Any]
# Tokens per pass of `embed` and `score`: enough to keep the processor busy, few enough to fit in any memory.
SCORED_TOKENS = 4096


def evaluate(
    path: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    engine: EngineConfig | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Report:
    """Evaluates a checkpoint on files: perplexity of texts, accuracy on JSONL files of samples.

    Args:
        path: A `Checkpoint`, or the directory of a checkpoint or run.
        data: Files; names that end in `.jsonl` hold samples, all others are texts in UTF-8.
        out: File for the report as JSON, every sample included.
        dtype: `auto` (the checkpoint's own), `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu` or `cuda[:N]`.
        engine: Engine limits.
        progress: Whether to show a progress bar; None shows one on a terminal.
        **settings: Fields of `EvaluationConfig`, such as `shots=3`.

    Raises:
        ConfigError: A setting is unknown or out of range, or `out` is a directory.
        CheckpointError: Files of the checkpoint are missing, damaged or contradictory.
        DataError: A file of data can't be read, or a line is no sample.

    Example:
        >>> from llm import evaluate
        >>> report = evaluate("runs/demo", "questions.jsonl", shots=3)  # doctest: +SKIP
        >>> report.results[0].metrics["accuracy"].value  # doctest: +SKIP
    """
    files = [data] if isinstance(data, str | os.PathLike) else list(data)
    config = evaluation_config(**settings)
    if out is not None:
        check_file("out", Path(out))
    session = Session(load_engine(path, dtype=dtype, device=device, config=engine))
    results = evaluate_files(session, files, config, progress=progress)
    report = Report(model=os.fspath(path), settings=config, results=results)
    if out is not None:
        write_bytes(Path(out), report.to_json())
    return report


def serve(path: str | os.PathLike[str], **settings: Any) -> None:
    """Serves a checkpoint or run over OpenAI-compatible endpoints until SIGINT or SIGTERM.

    Args:
        path: A `Checkpoint`, or the directory of a checkpoint or run.
        **settings: Fields of `llm.serving.ServerConfig` and of its `engine`, such as `port=8000` and
            `max_model_len=512`.

    Raises:
        ConfigError: A setting is unknown or out of range.
        ServerError: The port is in use, or the address can't be bound.
        CheckpointError: Files are missing, damaged or contradictory.
    """
    from llm.serving import serve as serve_path

    serve_path(path, server_config(**settings))
