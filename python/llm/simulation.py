"""Simulation of the request scheduler without a model: replays a trace or a synthetic load and measures the cost."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.progress import MofNCompleteColumn
from rich.table import Table

from llm._rust import SimulatedLoad, simulate_scheduler
from llm.errors import DataError
from llm.progress import progress_bar
from llm.settings.merge import validated
from llm.settings.simulation import Simulation

_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
# What a request may hold without a limit given: far more than its mean, so that hardly any is cut.
_LONGEST = 16


def run_simulation(
    simulation: Simulation, trace: str | Path | None = None, *, progress: bool | None = None
) -> dict[str, float]:
    """Runs a load to completion and measures every step.

    Args:
        simulation: The load and the limits.
        trace: A CSV or JSONL file to replay instead; see `read_trace`.
        progress: Show a bar; None shows one on a terminal.

    Returns:
        Counts, microseconds of a step (`step_us_p50`, `_p99`, `_max`, `_mean`) and of queueing (`add_us_mean`), tokens,
        preemptions, prefix-cache tokens, most blocks held, and seconds, real and simulated.

    Raises:
        DataError: The trace cannot be read.
        ConfigError: A value is out of range.
    """
    simulation = validated(simulation)
    load = synthetic_load(simulation) if trace is None else read_trace(trace)
    with progress_bar(MofNCompleteColumn(), wanted=progress) as bar:
        task = bar.add_task("Requests", total=len(load))
        return simulate_scheduler(
            load,
            simulation.limits(),
            num_blocks=simulation.num_blocks,
            step_s=simulation.step_ms / 1e3,
            token_s=simulation.token_us / 1e6,
            progress=lambda finished: bar.update(task, completed=finished),
        )


def synthetic_load(simulation: Simulation) -> SimulatedLoad:
    """The requests of a made-up load."""
    room = (simulation.max_model_len - simulation.prefix_tokens) // 2
    return SimulatedLoad.synthetic(
        num_requests=simulation.requests,
        mean_prompt_tokens=simulation.prompt_tokens,
        mean_output_tokens=simulation.output_tokens,
        max_tokens=max(1, min(room, _LONGEST * max(simulation.prompt_tokens, simulation.output_tokens))),
        rate_per_s=simulation.rate,
        num_prefixes=simulation.prefixes,
        prefix_tokens=simulation.prefix_tokens,
        seed=simulation.seed,
    )


def read_trace(path: str | Path) -> SimulatedLoad:
    """Reads requests from CSV (a name that ends in `.csv`, with a header) or JSON lines (any other), in any order.

    Columns: `arrival_s`, `prompt_tokens`, `output_tokens`, and, for prompts that begin the same, `prefix_id` (an
    integer) and `prefix_tokens` (how many of the prompt's tokens; all where it is left out).

    Raises:
        DataError: No such file, or a row that holds something else (with its number).
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = (
                csv.DictReader(lines) if path.suffix == ".csv" else map(msgspec.json.decode, filter(str.strip, lines))
            )
            parsed = [_request(row, number) for number, row in enumerate(rows, start=1)]
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise DataError(f"{path} can't be read as a trace: {error}") from error
    if not parsed:
        raise DataError(f"{path} holds no requests")
    columns = list(zip(*sorted(parsed, key=lambda request: request[0]), strict=True))
    kinds = (np.float64, np.uint32, np.uint32, np.uint64, np.uint32)
    return SimulatedLoad.trace(*(np.array(values, kind) for values, kind in zip(columns, kinds, strict=True)))


def _request(row: Any, number: int) -> tuple[float, int, int, int, int]:
    """Arrival, prompt, output, prefix id, prefix length."""
    try:
        arrival_s, (prompt, output) = float(row["arrival_s"]), (int(row[name]) for name in _COLUMNS[1:])
        prefix_id = int(row["prefix_id"]) if row.get("prefix_id") not in {None, ""} else -1
        shared = int(row["prefix_tokens"]) if row.get("prefix_tokens") not in {None, ""} else prompt
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"request {number} of the trace must hold numbers named {', '.join(_COLUMNS)}, got {row!r}"
        ) from error
    if not (arrival_s >= 0.0 and 1 <= prompt < 2**32 and 1 <= output < 2**32 and shared >= 0):
        raise DataError(f"request {number} of the trace must have at least one token each way, got {row!r}")
    return (arrival_s, prompt, output, max(prefix_id, 0), min(shared, prompt) if prefix_id >= 0 else 0)


def report_table(report: Mapping[str, float]) -> Table:
    """Formats a simulation's results as a table."""
    queries = report["prefix_query_tokens"]
    rows = {
        "requests finished": f"{report['num_finished']:,.0f}",
        "requests refused (never fit)": f"{report['num_refused']:,.0f}",
        "steps": f"{report['num_steps']:,.0f}",
        "requests a step": f"{report['mean_batch']:.1f}",
        "seconds, simulated": f"{report['simulated_s']:,.1f}",
        "seconds, real": f"{report['wall_s']:.2f}",
        "µs a step: half below": f"{report['step_us_p50']:.1f}",
        "µs a step: 99 % below": f"{report['step_us_p99']:.1f}",
        "µs a step: mean": f"{report['step_us_mean']:.1f}",
        "µs a step: max": f"{report['step_us_max']:.1f}",
        "µs to queue a request": f"{report['add_us_mean']:.2f}",
        "tokens computed": f"{report['tokens_scheduled']:,.0f}",
        "tokens generated": f"{report['output_tokens']:,.0f}",
        "preemptions": f"{report['num_preemptions']:,.0f}",
        "found in the prefix cache": f"{report['prefix_hit_tokens'] / queries if queries else 0.0:.1%}",
        "most requests waiting": f"{report['peak_waiting']:,.0f}",
        "most blocks held": f"{report['peak_blocks']:,.0f}",
    }
    table = Table("scheduler", "", title=None)
    table.columns[1].justify = "right"
    for name, value in rows.items():
        table.add_row(name, value)
    return table
