"""The page of performance says what the stored figures say."""

import re
from xml.etree import ElementTree

import pytest
from tools.bench_report import PAGE, PICTURE, SECTIONS, Row, Section, faster, page, picture, rows_of, sooner, tuning


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.file)
def test_every_row_of_the_stored_figures_is_on_the_page(section: Section) -> None:
    rows = rows_of(section)
    assert rows
    text = page().split(f"\n## {section.title}\n")[1].split("\n## ")[0]
    ratios = [float(found) for found in re.findall(r"^\|.*\| ([\d.]+) \|$", text, re.MULTILINE)]
    assert ratios == [pytest.approx(row.ratio, abs=0.005) for row in rows]
    assert section.file in text
    assert section.command in text


def test_the_stored_page_and_picture_are_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make bench-report`"
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run `make bench-report`"


def test_a_ratio_above_one_is_ours_ahead_for_speeds_and_times() -> None:
    assert faster("a", 30.0, "other", 10.0).ratio == 3.0
    assert sooner("a", 10.0, "other", 30.0).ratio == 3.0


def test_the_picture_has_a_bar_for_each_row_on_its_side_of_one() -> None:
    bars = ElementTree.fromstring(picture()).findall("{*}rect")[1:]
    rows = [row for section in SECTIONS for row in rows_of(section)]
    assert len(bars) == len(rows)
    ours = [bar.get("fill") for bar, row in zip(bars, rows, strict=True) if row.ratio >= 1]
    theirs = [bar.get("fill") for bar, row in zip(bars, rows, strict=True) if row.ratio < 1]
    assert len(set(ours)) == len(set(theirs)) == 1
    assert ours[0] != theirs[0]


def test_fine_tuning_has_a_row_for_each_pair_of_a_group() -> None:
    def loop(name: str, speed: float, peak: int, step: float) -> dict[str, object]:
        return {"name": name, "useful_tokens_per_s": speed, "peak_mib": peak, "step_s": step}

    full, lora, peft = (
        loop("ours-unpacked", 3.0, 8, 2.0),
        loop("ours-lora", 4.0, 4, 1.5),
        loop("trl-lora", 2.0, 5, 3.0),
    )
    assert list(
        tuning({"groups": [{"loops": [full, lora, peft]}, {"loops": [lora, loop("ours-qlora", 1.0, 2, 3.0)]}]})
    ) == [
        Row("adapters, tokens/s", 4.0, "PEFT", 2.0, 2.0),
        Row("adapters, peak MiB", 4, "PEFT", 5, 1.25),
        Row("adapters, s a step", 1.5, "all weights", 2.0, pytest.approx(4 / 3)),
        Row("4-bit base, peak MiB", 2, "bf16 base", 4, 2.0),
    ]
