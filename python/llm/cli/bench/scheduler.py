"""`llm bench scheduler`."""

from typing import Annotated

import typer

EXAMPLE = "Example:  llm bench scheduler --requests 1000000 --running 256 --block-size 16"


def scheduler(
    requests: Annotated[int, typer.Option(min=1, help="Requests to make up.")] = 100_000,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt, on average.")] = 500,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, on average.")] = 200,
    rate: Annotated[float | None, typer.Option(help="Arrivals a second; default: one always waits.")] = None,
    prefixes: Annotated[int, typer.Option(min=0, help="Beginnings that prompts share.")] = 0,
    prefix_tokens: Annotated[int, typer.Option(min=0, help="Tokens of such a beginning.")] = 0,
    trace: Annotated[str | None, typer.Option(help="Replay a CSV or JSONL file instead.")] = None,
    running: Annotated[int, typer.Option(min=1, help="Requests decoded together.")] = 256,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens a cache block.")] = 16,
    blocks: Annotated[int | None, typer.Option(min=1, help="Blocks; default: twice what runs on average.")] = None,
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="Token budget of a step.")] = 2048,
    prefix_caching: Annotated[bool, typer.Option(help="Find prompts that begin the same.")] = True,
    step_ms: Annotated[float, typer.Option(min=0.0, help="Simulated time of a step.")] = 20.0,
    token_us: Annotated[float, typer.Option(min=0.0, help="Simulated time more for each token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the made-up load.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print numbers for programs.")] = False,
) -> None:
    """Replay a load through the request scheduler, without a model: what it costs, what becomes of the load."""
    values = dict(locals())
    as_json, trace_path = values.pop("json"), values.pop("trace")
    import msgspec
    from rich.console import Console

    from llm.simulation import Simulation, report_table, run_simulation

    report = run_simulation(Simulation(**values), trace_path)
    if as_json:
        print(msgspec.json.encode(report).decode())
        return
    Console().print(report_table(report))


command = scheduler
