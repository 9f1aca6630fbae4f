"""Processes that split a model: how they end, and what is refused before they start."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from llm import LLM
from llm.checkpoint import Checkpoint
from llm.errors import ConfigError, ProcessLostError
from llm.inference import DraftSpeculation, EngineConfig, NgramSpeculation, build_engine
from llm.models import DecoderModel
from llm.tokenization import BPETokenizer
from tests.small_families import small
from tests.unit.inference_samples import GREEDY
from tests.unit.test_tensor_parallel import CONTEXT, VOCABULARY, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: BPETokenizer) -> Path:
    config = msgspec.structs.replace(small("llama"), vocab_size=VOCABULARY, max_position_embeddings=CONTEXT)
    return write_checkpoint(tmp_path_factory.mktemp("split") / "llama", config, tiny_tokenizer)


def generate_again(model: LLM) -> None:
    """Generates for as long as a process that was killed may take to end."""
    for _ in range(100):
        model.generate("To be", GREEDY)


def ranks_of(process_id: int | None = None) -> list[int]:
    """Ids of the processes of the other ranks that a process has started, by default this one."""
    tasks = Path(f"/proc/{process_id or os.getpid()}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [child for child in children if b"llm.inference.parallel" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of child processes")
def test_a_killed_process_ends_the_engine_with_its_name(checkpoint: Path) -> None:
    model = LLM(checkpoint, tensor_parallel_size=2)
    assert len(model.generate("To be", GREEDY).token_ids) == 20
    threads = torch.get_num_threads()
    [rank] = ranks_of()
    os.kill(rank, signal.SIGKILL)
    with pytest.raises(ProcessLostError, match=rf"rank 1 of 2, process {rank}, .* was killed by SIGKILL"):
        generate_again(model)
    with pytest.raises(ProcessLostError, match="SIGKILL"):
        model.generate("To be", GREEDY)
    assert ranks_of() == []
    # The next model has processes of its own, and the threads that PyTorch had.
    another = LLM(checkpoint, "bfloat16", tensor_parallel_size=2, kv_cache_dtype="int8")
    with contextlib.closing(another.engine):
        assert torch.get_num_threads() == threads
        with pytest.raises(ConfigError, match="in a process group already"):
            LLM(checkpoint, tensor_parallel_size=2)
        assert len(another.generate("To be", GREEDY).token_ids) == 20


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of child processes")
def test_a_dropped_model_ends_its_processes(checkpoint: Path) -> None:
    model = LLM(checkpoint, tensor_parallel_size=2, config=EngineConfig(speculative=NgramSpeculation()))
    expected = LLM(checkpoint, config=EngineConfig(backend="torch")).generate("To be", GREEDY).token_ids
    assert model.generate("To be", GREEDY).token_ids == expected
    [rank] = ranks_of()
    del model
    assert not Path(f"/proc/{rank}").exists()


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's sizes of processes")
def test_a_process_never_has_more_than_its_part_of_the_weights(
    tmp_path: Path, checkpoint: Path, tiny_tokenizer: BPETokenizer
) -> None:
    changes = {"vocab_size": 2**15, "hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 12}
    config = msgspec.structs.replace(small("llama"), **changes, max_position_embeddings=CONTEXT)
    large = write_checkpoint(tmp_path / "large", config, tiny_tokenizer)
    weights_bytes = (large / "model.safetensors").stat().st_size
    sizes = []
    for path in (checkpoint, large):
        model = LLM(path, tensor_parallel_size=2)
        [rank] = ranks_of()
        status = Path(f"/proc/{rank}/status").read_text().splitlines()
        sizes.append({line.split(":")[0]: int(line.split()[1]) * 1024 for line in status if line.endswith(" kB")})
        model.engine.close()
    own, peak = (sizes[1][name] - sizes[0][name] for name in ("RssAnon", "VmHWM"))
    assert 0.45 * weights_bytes < own < 0.55 * weights_bytes
    assert peak < 0.85 * weights_bytes  # with pages of the file, which the system may drop at any time


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor_parallel_size": 3}, r"it doesn't divide the model's `num_attention_heads` 4\nhint: .* takes 1, 2$"),
        ({"backend": "kernels"}, "the CPU kernels run a whole model"),
        ({"packed_weights": True}, "packed weights aren't split"),
        ({"speculative": DraftSpeculation(path="draft")}, "a draft model isn't split"),
    ],
)
def test_settings_that_cannot_be_split_are_refused(checkpoint: Path, changes: dict[str, Any], message: str) -> None:
    config = EngineConfig(**{"tensor_parallel_size": 2} | changes)
    with pytest.raises(ConfigError, match=message):
        LLM(checkpoint, config=config)


def test_adapters_and_models_in_memory_are_refused(checkpoint: Path, tiny_tokenizer: BPETokenizer) -> None:
    with pytest.raises(ConfigError, match="adapters can't be served with `tensor_parallel_size`, got poet"):
        LLM(checkpoint, tensor_parallel_size=2, adapters={"poet": "adapters/poet"})
    model = Checkpoint(checkpoint).model()
    assert isinstance(model, DecoderModel)
    with pytest.raises(ConfigError, match="must be 1 for a model in memory, got 2"):
        build_engine(model, tiny_tokenizer, EngineConfig(tensor_parallel_size=2))
