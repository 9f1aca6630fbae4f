"""`llm eval`."""

from typing import Annotated, Any

import typer

from llm.cli.options import Dtype, Path, engine_of, with_engine_options, with_options
from llm.settings.evaluation import EvaluationConfig

NAME = "eval"
EXAMPLE = "Example:  llm eval runs/demo corpus.txt questions.jsonl --shots 3 --out report.json"


@with_options(EvaluationConfig)
@with_engine_options
def evaluate(
    path: Path,
    data: Annotated[list[str], typer.Argument(metavar="FILE...", help="Texts, or JSONL files of samples.")],
    out: Annotated[str | None, typer.Option(metavar="PATH", help="Write a JSON report with every sample.")] = None,
    dtype: Dtype = "auto",
    **settings: Any,
) -> None:
    """Measure perplexity on texts, and accuracy on samples of multiple choice or generated answers."""
    from rich.console import Console

    from llm.api import evaluate as evaluate_path
    from llm.evaluation import report_table

    engine = engine_of(settings)
    report = evaluate_path(path, data, out=out, dtype=dtype, engine=engine, **settings)
    Console().print(report_table(report))


command = evaluate
