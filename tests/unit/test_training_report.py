"""The page of a run."""

import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm.checkpoint import Run
from llm.training.launch import launch
from llm.training.record import RunRecord
from llm.training.report.curves import Curve, points_of, smoothed, thinned
from llm.training.report.page import report_page
from llm.training.report.svg import chart, short, ticks
from tests.unit.training_samples import on_text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path) -> Run:
    run = Run(tmp_path_factory.mktemp("runs") / "run <1>")
    launch(on_text(corpus_file, max_steps=6, sample_tokens=8), run.path)
    return run


class Parts(HTMLParser):
    """Tags, whatever names an address, and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_run_ends_with_a_page_of_curves_samples_settings_and_machine(run: Run) -> None:
    parts = Parts(run.report_file.read_text(encoding="utf-8"))
    last = [line for line in run.read_log() if "validation_loss" in line][-1]
    for words in ("run <1>", "finished", "6 / 6", f"{last['validation_loss']:.4f}", f"{last['bits_per_byte']:.4f}"):
        assert words in parts.text
    for title in ("Loss", "Learning rate", "Gradient norm", "Tokens per second", "Samples", "Settings", "Machine"):
        assert title in parts.words
    for sample in run.samples.read():
        assert sample["text"] in parts.words
    assert "model.hidden_size" in parts.words
    assert "torch" in parts.words


def test_the_page_loads_nothing_and_runs_nothing(run: Run) -> None:
    page = run.report_file.read_text(encoding="utf-8")
    parts = Parts(page)
    assert not {"script", "link", "img", "iframe"} & parts.tags
    assert parts.addresses == []
    assert "default-src 'none'" in page
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page) == []


def test_text_of_the_model_stays_text(run: Run) -> None:
    record = RunRecord.read(run)
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    run.samples.append({"step": 6, "prompt": evil, "text": evil})
    parts = Parts(report_page(record))
    assert not {"script", "img"} & parts.tags
    assert parts.text.count(evil) == 2


def test_sources_and_experts_are_shown_where_there_are_any(run: Run) -> None:
    record = RunRecord.read(run)
    extra = {"loss/web": 2.0, "loss/books": 3.0, "validation_loss/papers": 2.5, "expert_load": [[0.75, 0.25]]}
    page = report_page(RunRecord(run, record.config, [line | extra for line in record.log], record.about))
    parts = Parts(page)
    assert {
        "Loss by source",
        "web",
        "books",
        "Validation loss by source",
        "papers",
        "Load of the experts",
        "75.0%",
    } <= set(parts.words)


def test_a_run_without_a_step_has_a_page(tmp_path: Path, corpus_file: Path) -> None:
    run = Run(tmp_path / "run")
    run.create(on_text(corpus_file), {})
    assert "0 / 6" in Parts(report_page(RunRecord.read(run))).text


def test_numbers_that_are_not_finite_leave_a_gap_in_a_curve() -> None:
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0}]
    assert points_of(log, "loss") == [(1.0, 2.0), (3.0, 1.0)]
    drawing = chart("Loss", [Curve("training", points_of(log, "loss"))])
    ElementTree.fromstring(drawing)
    assert "nan" not in drawing


def test_a_long_curve_keeps_its_spikes() -> None:
    points = [(float(step), 9.0 if step == 7_777 else math.sin(step / 900)) for step in range(20_000)]
    few = thinned(points)
    assert len(few) <= 520
    assert (7_777.0, 9.0) in few
    assert few == sorted(few)
    assert smoothed([(1.0, 4.0), (2.0, 2.0)]) == [(1.0, 4.0), (2.0, 2.0)]


def test_axes_have_round_numbers() -> None:
    assert ticks(0.0, 1.0, 5) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(3.1, 4.9, 5) == pytest.approx([3.5, 4.0, 4.5])
    assert [short(value) for value in (0, 3e-4, 0.25, 1500, 2.5e6)] == ["0", "3e-4", "0.25", "1.5k", "2.5M"]
