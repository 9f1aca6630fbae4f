"""Small real checkpoints that many tests share."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():
    # Kernels for CUDA run in Triton's interpreter; Triton looks when it is first imported, by whomever.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from llm.checkpoint import atomic_directory, write_model
from llm.demo import demo_corpus
from llm.models import DecoderModel
from llm.settings.model import ModelConfig
from llm.tokenization import BPETokenizer, use_chat_template

# A busy machine takes its time: only a property that fails may fail a test.
hypothesis.settings.register_profile("any_speed", deadline=None)
hypothesis.settings.load_profile("any_speed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips `gpu` tests where there is no CUDA device, and `slow` ones unless `-m slow` asks for them."""
    asked = config.getoption("-m")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "peers" in item.keywords and "peers" not in asked:
            item.add_marker(pytest.mark.skip(reason="needs other programs: run `make test-peers`"))
        if "slow" in item.keywords and "slow" not in asked:
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with `-m slow`"))


@pytest.fixture(scope="session")
def corpus_text() -> str:
    """The first 200,000 characters of the shipped corpus."""
    return demo_corpus()[:200_000]


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory, corpus_text: str) -> Path:
    """A file with `corpus_text`."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text(corpus_text, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny_tokenizer(corpus_text: str) -> BPETokenizer:
    """384 entries, with the chat template of a play."""
    tokenizer = BPETokenizer.train_from_iterator([corpus_text], vocab_size=384, progress=False)
    use_chat_template(tokenizer, "play")
    return tokenizer


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: BPETokenizer) -> Path:
    """A seeded, untrained model of 128 tokens' context whose logits are far from flat."""
    config = ModelConfig(
        vocab_size=tiny_tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    with atomic_directory(directory) as temporary:
        write_model(temporary, DecoderModel(config), tiny_tokenizer)
    return directory
