"""The sum of the core's lines that tests run."""

from pathlib import Path

import pytest
from tools import rust_coverage

LCOV = """SF:/core/rust/src/sampling/draw.rs
FN:3,a
FNDA:1,a
DA:3,1
DA:4,0
DA:9,0
DA:4,2
LF:3
end_of_record
SF:/elsewhere/lib.rs
DA:1,0
end_of_record
"""


def test_a_line_counts_as_run_if_any_of_its_copies_was_and_other_code_does_not_count() -> None:
    files = rust_coverage.read_lcov(LCOV, Path("/core/rust/src"))
    assert files == {"sampling/draw.rs": {3: True, 4: True, 9: False}}


def test_the_tests_at_the_foot_of_a_file_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "a.rs").write_text("fn a() {\n}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n", encoding="utf-8")
    (tmp_path / "b.rs").write_text("#[cfg(test)]\nmod a_tests;\n\nfn a() {}\n", encoding="utf-8")
    files = {"a.rs": {1: True, 2: False, 6: True}, "b.rs": {4: False}, "a/tests.rs": {1: True}}
    assert rust_coverage.without_tests(files, tmp_path) == {"a.rs": {1: True, 2: False}, "b.rs": {4: False}}


def test_the_report_sums_parts_and_lists_what_low_files_miss() -> None:
    missing = {3: False, 4: False, 6: False, 7: True, 9: False}
    files = {"a/x.rs": dict.fromkeys(range(45), True), "a/y.rs": missing, "lib.rs": {1: True}}
    table, share = rust_coverage.report(files, [])
    assert [line.split() for line in table.splitlines()[:3]] == [
        ["(others)", "1", "of", "1", "lines", "100.0", "%"],
        ["a", "46", "of", "50", "lines", "92.0", "%"],
        ["in", "all", "47", "of", "51", "lines", "92.2", "%"],
    ]
    assert table.splitlines()[-1] == " 20.0 %  a/y.rs: 3-6, 9"
    assert share == pytest.approx(100 * 47 / 51)


def test_kernels_this_machine_cannot_run_are_left_out_by_name() -> None:
    files = {name: {1: False} for name in rust_coverage.NEEDS} | {"a.rs": {1: True}}
    table, share = rust_coverage.report(files, [])
    assert share == 100.0
    assert all(f"left out: {name}, which needs {flag}" in table for name, flag in rust_coverage.NEEDS.items())
    assert "left out" not in rust_coverage.report(files, rust_coverage.NEEDS.values())[0]


def test_every_file_that_may_be_left_out_exists() -> None:
    assert all((rust_coverage.SOURCES / name).is_file() for name in rust_coverage.NEEDS)
