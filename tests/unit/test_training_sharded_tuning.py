"""Conversations are learnt, by all weights and by adapters, in shards as in whole models."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import llm
from llm.checkpoint import Run, load_tensors
from llm.export import export
from tests.unit.chat_rows import dialogue, write_rows
from tests.unit.processes import ends_of, in_processes
from tests.unit.sharded_runs import NUM_ROWS, PASSES, SETTINGS, check_equal, check_resumes, run_of, tune, weights_in

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


# A rank of 3 parts unevenly, and row lengths (DoRA) are vectors.
@pytest.mark.parametrize("kind", ["lora.input_dropout=0.0", "lora.use_dora=true"])
def test_adapters_are_learnt_in_shards_beside_a_sharded_base(
    tiny_checkpoint: Path, rows: Path, tmp_path: Path, kind: str
) -> None:
    given = {"model": tiny_checkpoint, "data": rows, "chat_template": "chatml", "packing": False} | PASSES
    words = ("lora.rank=3", kind)
    whole = run_of("sft", tmp_path / "ddp", "ddp", *words, **given)
    shards = run_of("sft", tmp_path / "fsdp", "fsdp", *words, **given)
    check_equal(shards, whole)
    saved, others = shards.checkpoint(4).path, whole.checkpoint(4).path
    for name in ("adapter_config.json", "base_digests.json"):
        assert (saved / name).read_bytes() == (others / name).read_bytes()
    moments = [load_tensors(file) for file in sorted((saved / "training_state").glob("*.safetensors"))]
    assert len(moments) == 2
    assert all("lora_a" in name or "lora_b" in name or "magnitude" in name for part in moments for name in part)
    check_resumes(shards, "sft", tmp_path)


def test_what_shards_saved_of_adapters_one_process_goes_on_with(
    tiny_checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    given = {"model": tiny_checkpoint, "data": rows, "chat_template": "chatml", "packing": False} | PASSES
    run = run_of("sft", tmp_path / "fsdp", "fsdp", "lora.rank=3", **given)
    cut = Run(shutil.copytree(run.path, tmp_path / "cut"))
    cut.drop_after(2)
    (cut.path / "latest").write_text("checkpoints/step_00000002\n")
    llm.sft(resume=cut.path, callbacks=[])
    weights = weights_in(run.checkpoint(4))
    for name, tensor in weights_in(cut.checkpoint(4)).items():
        assert (tensor - weights[name]).abs().max() <= 1e-5, name


def tune_as_users_do(given: dict[str, Any]) -> None:
    """Tunes with the standard callbacks, among them the one that writes samples."""
    llm.sft(**given)


def test_samples_and_saves_beside_the_loop_are_those_of_whole_models(
    tiny_checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    given = {"model": tiny_checkpoint, "data": rows, "chat_template": "chatml", "packing": False} | SETTINGS | PASSES
    runs = [Run(tmp_path / kind) for kind in ("ddp", "fsdp")]
    for run in runs:
        words = [f"training.sharding={run.path.name}", "lora.rank=3", "training.async_save=true"]
        in_processes(2, tune_as_users_do, given | {"out": run.path, "overrides": words})
    check_equal(*runs)
    samples = [{one["step"]: one["text"] for one in run.samples.read()} for run in runs]
    assert samples[0] == samples[1]
    assert sorted(samples[1]) == [2, 4]


def test_a_packed_base_is_refused_before_the_run_exists(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    base = export(tiny_checkpoint, tmp_path / "base.gguf", "gguf", quantization="q8_0")
    out = tmp_path / "run"
    given = {"model": base, "data": rows, "chat_template": "chatml", "out": out} | SETTINGS
    words = {"overrides": ["training.sharding=fsdp", "lora.rank=3"]}
    exit_codes, messages = ends_of(2, tune, "sft", out, "fsdp", given | words)
    assert exit_codes == [1, 1]
    assert any("`training.sharding=fsdp` can't shard a quantised base" in one for one in messages)
    assert not Run(out).exists
    in_processes(1, tune, "sft", out, None, given | words)
    assert Run(out).newest() is not None
