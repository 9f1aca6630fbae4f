"""Conversations are learnt in shards as in whole models."""

from pathlib import Path

import pytest

from tests.unit.chat_rows import dialogue, write_rows
from tests.unit.sharded_runs import NUM_ROWS, PASSES, check_equal, check_resumes, run_of

# Takes 10 to 50 seconds; `make check` leaves it out.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "chats.jsonl", [dialogue(number) for number in range(NUM_ROWS)])


def test_conversations_are_learnt_in_shards_as_in_whole_models(
    tiny_checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    given = {"model": tiny_checkpoint, "data": rows, "chat_template": "chatml", "packing": False} | PASSES
    alone = run_of("sft", tmp_path / "one", None, **given)
    whole = run_of("sft", tmp_path / "ddp", "ddp", **given)
    shards = run_of("sft", tmp_path / "fsdp", "fsdp", **given)
    check_equal(shards, alone)
    check_equal(shards, whole)
    check_resumes(shards, "sft", tmp_path)
