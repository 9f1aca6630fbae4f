"""Several processes learn of a teacher what one learns."""

from pathlib import Path

import pytest
import torch

from llm.checkpoint import resolve, write_model
from llm.models import DecoderModel
from tests.unit.chat_rows import dialogue, write_rows
from tests.unit.sharded_runs import NUM_ROWS, PASSES, check_equal, check_resumes, run_of

# Takes 10 to 50 seconds; `make check` leaves it out.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "chats.jsonl", [dialogue(number) for number in range(NUM_ROWS)])


@pytest.fixture(scope="module")
def teacher(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other weights with the same tokenizer."""
    folder = tmp_path_factory.mktemp("teacher")
    base = resolve(tiny_checkpoint)
    torch.manual_seed(1)
    write_model(folder, DecoderModel(base.config), base.tokenizer())
    return folder


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("words", [(), ("lora.rank=3", "distillation.weight=0.5", "distillation.temperature=2.0")])
def test_two_processes_learn_of_a_teacher_what_one_learns(
    tiny_checkpoint: Path, teacher: Path, rows: Path, tmp_path: Path, sharding: str, words: tuple[str, ...]
) -> None:
    given = {"model": tiny_checkpoint, "data": rows, "chat_template": "chatml", "packing": False} | PASSES
    given |= {"teacher": str(teacher)}
    alone = run_of("sft", tmp_path / "one", None, *words, **given)
    two = run_of("sft", tmp_path / "two", sharding, *words, **given)
    check_equal(two, alone, "divergence")
    assert len(list(two.data.glob("teacher-*/*.top"))) == 2
    if sharding == "fsdp":
        check_resumes(two, "sft", tmp_path)
