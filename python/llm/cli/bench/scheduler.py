"""`llm bench scheduler`."""

from typing import Annotated, Any

import typer

from llm.cli.options import with_options
from llm.settings.simulation import Simulation

EXAMPLE = "Example:  llm bench scheduler --requests 1000000 --running 256 --block-size 16"


@with_options(Simulation)
def scheduler(
    trace: Annotated[str | None, typer.Option(help="Replay a CSV or JSONL file instead.")] = None,
    json: Annotated[bool, typer.Option("--json", metavar="", help="Print the report as JSON.")] = False,
    **settings: Any,
) -> None:
    """Replay a load through the request scheduler without a model, and report what it costs."""
    import msgspec
    from rich.console import Console

    from llm.simulation import report_table, run_simulation

    report = run_simulation(Simulation(**settings), trace)
    if json:
        print(msgspec.json.encode(report).decode())
        return
    Console().print(report_table(report))


command = scheduler
