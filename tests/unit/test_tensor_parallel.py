"""A model that is split over two processes computes what one process does, from half of the weights each."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from llm import LLM
from llm.checkpoint import Checkpoint, atomic_directory, write_model
from llm.errors import InvalidArgumentError
from llm.inference import EngineConfig
from llm.inference.engine import Engine
from llm.inference.runners.base import Step
from llm.models import DecoderModel
from llm.models.costs import kv_bytes_per_token
from llm.models.tensor_parallel import Shard, obstacle, shard_config
from llm.settings.model import LatentConfig, ModelConfig
from llm.tokenization import BPETokenizer
from tests.small_families import small
from tests.unit.inference_samples import GREEDY, drain_ids

GPT2 = ModelConfig(
    family="gpt2",
    norm="layer_norm",
    position_encoding="learned",
    mlp="gelu",
    mlp_bias=True,
    hidden_act="gelu_pytorch_tanh",
    attention_bias=True,
    attention_output_bias=True,
    num_key_value_heads=4,
    intermediate_size=512,
    initializer_range=0.2,
)
GEMMA2 = msgspec.structs.replace(
    small("gemma"),
    family="gemma2",
    norm_placement="both",
    sliding_window=9,
    layer_types=("sliding_attention", "full_attention"),
    query_pre_attn_scalar=24.0,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
)
MODELS = {"llama": small("llama"), "qwen2": small("qwen2"), "gpt2": GPT2, "gemma2": GEMMA2}
# One token less than there are rows, so that the ranks have different numbers of rows.
VOCABULARY = 385
CONTEXT = 64
BLOCK = 8
MADE = {"block_size": BLOCK, "max_prefill_chunk": 7, "max_batch_tokens": 24, "max_model_len": CONTEXT}


def write_checkpoint(directory: Path, config: ModelConfig, tokenizer: BPETokenizer) -> Path:
    """Writes a seeded model whose biases and norms are not what they were initialised to."""
    torch.manual_seed(3)
    model = DecoderModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * (0.5 if name.endswith("bias") else 0.1))
    with atomic_directory(directory) as unfinished:
        write_model(unfinished, model, tokenizer)
    return directory


def limits(config: ModelConfig, size: int, blocks: int = 20) -> EngineConfig:
    """Limits with memory for `blocks` blocks, of which four long requests need more."""
    share = shard_config(config, size) if size > 1 else config
    memory = kv_bytes_per_token(share, torch.float32) * BLOCK * blocks
    return EngineConfig(
        **MADE, backend="auto" if size > 1 else "torch", kv_cache_memory_bytes=memory, tensor_parallel_size=size
    )


@pytest.fixture(scope="module", params=MODELS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: BPETokenizer
) -> Iterator[tuple[LLM, LLM]]:
    config = msgspec.structs.replace(MODELS[request.param], vocab_size=VOCABULARY, max_position_embeddings=CONTEXT)
    path = write_checkpoint(tmp_path_factory.mktemp("split") / request.param, config, tiny_tokenizer)
    whole, split = LLM(path, config=limits(config, 1)), LLM(path, config=limits(config, 2))
    with contextlib.closing(split.engine):
        yield whole, split


def step_of(length: int, engine: Engine) -> Step:
    """A step with one prompt of `length` tokens and one of 3, with logits of every token."""
    tables = np.array([range(1, 9), range(9, 17)], dtype=np.int32)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, length + 3)
    step = Step.of([(0, length), (0, 3)], tables, ids, engine.limits.block_size)
    step.logits_indices = np.arange(length + 3)
    return step


def test_logits_equal_those_of_one_process(pair: tuple[LLM, LLM]) -> None:
    whole, split = (model.engine for model in pair)
    step = step_of(21, whole)
    expected, found = whole.runner.run(step), split.runner.run(step)
    assert found.shape == (24, VOCABULARY)
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= 1e-5 * scale
    # A block copied on both ranks serves another request.
    copied = Step.of([(20, 21)], np.array([[1, 2, 20 - 1]], dtype=np.int32), step.token_ids[20:21], BLOCK)
    copied.block_copies = np.array([[3, 19]], dtype=np.int64)
    assert torch.allclose(split.runner.run(copied), whole.runner.run(copied), atol=1e-5 * scale)


def test_greedy_answers_equal_those_of_one_process(pair: tuple[LLM, LLM]) -> None:
    prompts = ["To be", "First Citizen: Before we proceed", "O", "First Citizen: Before we go", "ROMEO:"]
    answers = []
    for model in pair:
        engine = model.engine
        before = engine.stats()
        ids = [
            engine.add_request(model.session.encode(prompt), msgspec.structs.replace(GREEDY, max_tokens=36))
            for prompt in prompts
        ]
        answers.append(drain_ids(engine, ids))
        after = engine.stats()
        assert after["num_preemptions"] > before["num_preemptions"]
        again = model.generate(prompts, msgspec.structs.replace(GREEDY, max_tokens=36, n=2))
        assert [list(output.token_ids) for output in again] == answers[-1]
        assert engine.stats()["prefix_hit_tokens"] > 0
    assert answers[0] == answers[1]


def test_each_process_has_half_of_the_matrices_and_of_the_cache(pair: tuple[LLM, LLM]) -> None:
    whole, split = (model.engine for model in pair)
    matrices, halves = (
        {name: value.numel() for name, value in engine.runner.model.named_parameters() if value.dim() == 2}
        for engine in (whole, split)
    )
    for name, count in matrices.items():
        widest = max(1, count // VOCABULARY)  # of an odd vocabulary, rank 0 has one row more
        assert halves[name] in (count // 2, (count + widest) // 2) or name.startswith("positions"), name
    assert split.cache_format[1] * 2 == whole.cache_format[1]
    assert split.stats()["blocks_total"] == whole.stats()["blocks_total"] == 20
    assert split.model_config == whole.runner.model.config


def test_what_needs_the_whole_model_is_refused(pair: tuple[LLM, LLM]) -> None:
    _, split = pair
    for ask in (lambda: split.embed(["To be"]), lambda: split.score(["To be"], [" or not"])):
        with pytest.raises(InvalidArgumentError, match="whole model in one process, got 1/2"):
            ask()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (small("mixtral"), "mlp 'moe' isn't split"),
        (ModelConfig(attention="mla", latent=LatentConfig(), num_key_value_heads=4), "attention 'mla' isn't split"),
        (small("olmo2"), "a norm over the queries of all heads isn't split"),
        (msgspec.structs.replace(small("llama"), num_key_value_heads=1), "`num_key_value_heads` 1"),
        (msgspec.structs.replace(small("llama"), intermediate_size=191), "`intermediate_size` 191"),
        (msgspec.structs.replace(small("llama"), vocab_size=1), "leaves a rank none"),
    ],
)
def test_models_that_cannot_be_split_are_refused(config: ModelConfig, reason: str) -> None:
    found = obstacle(config, 2)
    assert found is not None
    assert reason in found[0]


@pytest.mark.parametrize("name", ["phi3", "ernie4_5", "cohere2", "stablelm", "glm4", "qwen3", "gemma3_text", "granite"])
def test_parts_of_each_family_make_up_the_whole(tmp_path: Path, tiny_tokenizer: BPETokenizer, name: str) -> None:
    config = msgspec.structs.replace(small(name), vocab_size=VOCABULARY)
    path = write_checkpoint(tmp_path / name, config, tiny_tokenizer)
    whole = Checkpoint(path).model()
    parts = [Checkpoint(path).shard(Shard(rank, 2)).state_dict() for rank in range(2)]
    for key, value in whole.state_dict().items():
        mine, other = (part[key] for part in parts)
        if mine.shape == value.shape:
            assert torch.equal(mine, value), key
            continue
        dim = next(dim for dim, size in enumerate(value.shape) if mine.shape[dim] != size)
        sizes = (4, 2, 2) if "qkv_proj" in key else (1, 1) if "gate_up" in key else (1,)
        unit = value.shape[dim] // sum(sizes)
        if sizes == (1,):
            joined = torch.cat([mine, other], dim)
        else:
            split = [part.split([size * unit // 2 for size in sizes], dim) for part in (mine, other)]
            joined = torch.cat([piece for pieces in zip(*split, strict=True) for piece in pieces], dim)
        assert torch.equal(joined, value), key
