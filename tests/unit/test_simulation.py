"""The scheduler's simulation, its traces and its command."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm import _rust
from llm.cli.main import app
from llm.errors import ConfigError, DataError, InvalidArgumentError
from llm.settings.engine import EngineConfig
from llm.settings.simulation import Simulation
from llm.simulation import read_trace, report_table, run_simulation, synthetic_load

SMALL = Simulation(requests=300, prompt_tokens=40, output_tokens=20, running=16, block_size=4)


def test_a_load_runs_to_its_end():
    report = run_simulation(SMALL)
    assert (report["num_finished"], report["num_refused"]) == (300, 0)
    assert 15 * 300 < report["output_tokens"] < 25 * 300
    assert report["simulated_s"] == pytest.approx(0.02 * report["num_steps"])
    assert 10 < report["mean_batch"] <= 16
    assert report["prefix_hit_tokens"] == 0
    assert 0 < report["step_us_p50"] <= report["step_us_p99"] <= report["step_us_max"]


def test_few_blocks_preempt_and_shared_beginnings_are_found():
    assert run_simulation(Simulation(**{**fields(SMALL), "blocks": 100}))["num_preemptions"] > 0
    report = run_simulation(Simulation(**{**fields(SMALL), "prefixes": 2, "prefix_tokens": 40}))
    assert 0.3 < report["prefix_hit_tokens"] / report["prefix_query_tokens"] < 0.5


def fields(simulation):
    return {name: getattr(simulation, name) for name in simulation.__struct_fields__}


TRACE = [
    {"arrival_s": 9.5, "prompt_tokens": 20, "output_tokens": 3, "prefix_id": 4, "prefix_tokens": 8},
    {"arrival_s": 0, "prompt_tokens": 20, "output_tokens": 3, "prefix_id": 4},
    {"arrival_s": 20, "prompt_tokens": 6, "output_tokens": 1},
]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_trace_is_replayed_in_order_of_arrival(tmp_path, kind):
    path = tmp_path / f"trace.{kind}"
    if kind == "csv":
        names = list(TRACE[0])
        lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in TRACE)]
    else:
        lines = [json.dumps(row) for row in TRACE]
    path.write_text("\n".join(lines) + "\n")
    assert len(read_trace(path)) == 3
    report = run_simulation(SMALL, path)
    assert (report["num_finished"], report["output_tokens"]) == (3, 7)
    assert report["simulated_s"] == pytest.approx(20.02)
    assert report["prefix_hit_tokens"] == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,prompt_tokens\n1,2\n", "request 1 of the trace must hold numbers named arrival_s, prompt_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n1,x,2\n", "got .*'x'"),
        ("arrival_s,prompt_tokens,output_tokens\n1,0,2\n", "at least one token each way"),
        ("arrival_s,prompt_tokens,output_tokens\n", "holds no requests"),
    ],
)
def test_a_bad_trace_is_named(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_trace(path)


def test_a_trace_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(DataError, match=r"trace\.csv can't be read as a trace"):
        read_trace(tmp_path / "trace.csv")
    path = Path(tmp_path / "trace.jsonl")
    path.write_text("{]\n")
    with pytest.raises(DataError, match=r"trace\.jsonl can't be read as a trace"):
        read_trace(path)


def test_values_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="`running` must be"):
        run_simulation(Simulation(running=0))
    with pytest.raises(InvalidArgumentError, match="`step_s` must be at least 0, got -1"):
        _rust.simulate_scheduler(
            synthetic_load(SMALL), EngineConfig(max_batch_tokens=4, max_model_len=16), num_blocks=4, step_s=-1.0
        )


def test_what_progress_raises_ends_the_simulation():
    def stop(finished):
        raise KeyboardInterrupt(finished)

    endless = _rust.SimulatedLoad.synthetic(
        num_requests=10**8, mean_prompt_tokens=10, mean_output_tokens=10, max_tokens=100
    )
    with pytest.raises(KeyboardInterrupt):
        _rust.simulate_scheduler(
            endless, EngineConfig(max_batch_tokens=256, max_model_len=400), num_blocks=1000, progress=stop
        )


def test_the_command_prints_a_table_or_numbers(tmp_path):
    options = ["bench", "scheduler", "--requests", "50", "--running", "4", "--prompt-tokens", "20"]
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 0
    assert "requests finished" in shown.output
    numbers = json.loads(CliRunner().invoke(app, [*options, "--json"]).output)
    assert numbers["num_finished"] == 50
    assert report_table(numbers).row_count == 17
