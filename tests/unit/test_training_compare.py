"""Runs beside each other: `llm runs` and its functions."""

import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import pytest
import typer.testing

from llm.checkpoint import Run
from llm.cli.main import app
from llm.cli.runs.tables import sparkline
from llm.errors import CheckpointError, ConfigError
from llm.settings.run import TokenizerConfig
from llm.training import compare_runs, list_runs, plot_runs
from llm.training.launch import launch
from llm.training.report.settings import differing
from tests.unit.training_samples import config, on_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Path:
    """Three runs: two on text, one of which stopped, and one without text."""
    folder = tmp_path_factory.mktemp("runs")
    launch(on_text(corpus_file, max_steps=6, sample_tokens=0), folder / "base")
    launch(config(max_steps=3), folder / "deeper" / "numbers")
    shutil.copytree(folder / "base", folder / "cut")
    cut = Run(folder / "cut")
    cut.rewind_log(5)
    cut.drop_after(5)
    text = (cut.path / "run.json").read_text()
    (cut.path / "run.json").write_text(re.sub(r'"learning_rate": 0\.01', '"learning_rate": 0.02', text))
    return folder


def say(*arguments: object) -> str:
    done = typer.testing.CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_each_verb_has_an_example() -> None:
    for verb in ("list", "compare", "plot"):
        assert f"Example:  llm runs {verb}" in say("runs", verb, "--help")


def test_a_folders_runs_are_listed_with_size_steps_losses_and_state(folder: Path) -> None:
    head, *lines = say("runs", "list", folder).splitlines()
    assert head.split()[:3] == ["run", "parameters", "steps"]
    last = Run(folder / "base").read_log()[-1]
    rows = {line.split()[0]: line for line in lines}
    assert list(rows) == [str(folder / name) for name in ("base", "cut", "deeper/numbers")]
    base = rows[str(folder / "base")]
    assert "6 / 6" in base
    assert "768" in base
    assert f"{last['validation_loss']:.4f}" in base
    assert f"{last['bits_per_byte']:.4f}" in base
    assert [rows[str(record.run.path)].split()[-1] for record in list_runs(folder)] == [
        "finished",
        "stopped",
        "finished",
    ]


def test_a_run_in_progress_is_running(folder: Path) -> None:
    run = Run(folder / "cut")
    with run.locked():
        assert [record.state for record in list_runs(run.path)] == ["running"]
    assert [record.state for record in list_runs(run.path)] == ["stopped"]


def test_a_run_is_as_far_as_its_newest_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(folder / "base", tmp_path / "run"))
    run.rewind_log(3)
    assert (list_runs(run.path)[0].step, list_runs(run.path)[0].state) == (6, "finished")


def test_settings_without_effect_do_not_differ(folder: Path) -> None:
    trained = Run(folder / "base").read_config()
    given, other = (
        msgspec.structs.replace(trained, tokenizer=TokenizerConfig(path="mine", vocab_size=size)) for size in (512, 777)
    )
    assert differing([given, other]) == {}
    assert differing([trained, given])["tokenizer.vocab_size"] == ("300", "-")


def test_a_comparison_shows_settings_that_differ_ends_and_curves(folder: Path) -> None:
    paths = [folder / "base", folder / "cut"]
    found = compare_runs(paths)
    assert found.settings == {"optimizer.learning_rate": ("0.01", "0.02")}
    assert found.figures["steps"] == ("6 / 6", "5 / 6")
    assert found.figures["state"] == ("finished", "stopped")
    text = say("runs", "compare", *paths)
    assert re.search(r"optimizer\.learning_rate +0\.01 +0\.02", text)
    assert re.search(r"validation loss, by step\n.*base +[▁-█ ]+  \d\.\d{4}", text)


def test_a_plot_is_html_svg_or_png(folder: Path, tmp_path: Path) -> None:
    paths = [folder / "base", folder / "cut"]
    assert say("runs", "plot", *paths, "--out", tmp_path / "losses.svg") == f"{tmp_path / 'losses.svg'}\n"
    drawing = ElementTree.parse(tmp_path / "losses.svg")
    titles = {title.text for title in drawing.iter("{http://www.w3.org/2000/svg}title")}
    assert {"base: loss", "cut: loss", "base: validation loss"} <= titles
    page = plot_runs(paths, tmp_path / "new" / "norms.html", ["grad_norm"]).read_text(encoding="utf-8")
    assert "base: grad norm" in page
    pytest.importorskip("matplotlib")
    assert plot_runs(paths, tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_what_can_not_be_shown_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory"):
        list_runs(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="at least 2 runs, got 1"):
        compare_runs([folder / "base"])
    with pytest.raises(CheckpointError, match=r"holds no run.*\nhint: `llm runs list`"):
        compare_runs([folder / "base", folder])
    with pytest.raises(ConfigError, match=r"must end in one of \.html, \.png, \.svg"):
        plot_runs([folder / "base"], tmp_path / "losses.gif")
    with pytest.raises(ConfigError, match=r"no run has values under 'speed' in its log; there are .*grad_norm"):
        plot_runs([folder / "base"], tmp_path / "losses.svg", ["speed"])
    assert say("runs", "list", tmp_path).startswith("no run in ")


def test_small_curves_share_their_axes() -> None:
    first, second = sparkline([[(0.0, 4.0), (10.0, 2.0)], [(5.0, 3.0)]])
    assert first == "█" + " " * 46 + "▁  2.0000"
    assert second.strip() == "▄" + " " * 24 + "  3.0000"
    assert sparkline([[(1.0, 1.0)], []])[1] == "-"
