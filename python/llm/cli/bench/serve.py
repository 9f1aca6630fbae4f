"""`llm bench serve`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llm.cli.options import with_options
from llm.settings.benchmark import ServingBenchmark

EXAMPLE = "Example:  llm bench serve --url http://127.0.0.1:8000 --rate 4 --repeats 5 --output a.json"


@with_options(ServingBenchmark, envvars={"api_key": "LLM_API_KEY"})
def serve(
    output: Annotated[str | None, typer.Option(metavar="FILE", help="Write the report as JSON.")] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw the distributions (.png, .svg).")] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Compare two reports instead of measuring.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", metavar="", help="Print the metrics as JSON.")] = False,
    **settings: Any,
) -> None:
    """Put a load on a server and measure latency, throughput and goodput."""
    import msgspec
    from rich.console import Console

    from llm.benchmark import compare as compared
    from llm.benchmark import comparison_table, plot_report, read_report, report_table, run_benchmark

    if compare is not None:
        before, after = map(read_report, compare)
        differences = compared(before, after)
        if json:
            print(msgspec.json.encode(differences).decode())
            return
        Console().print(comparison_table(differences, min(len(before.repeats), len(after.repeats))))
        return
    report = run_benchmark(ServingBenchmark(**settings))
    if output is not None:
        Path(output).write_bytes(msgspec.json.encode(report))
    if plot is not None:
        plot_report(report, plot)
    if json:
        print(msgspec.json.encode([repeat.metrics for repeat in report.repeats]).decode())
        return
    Console().print(report_table(report))


command = serve
