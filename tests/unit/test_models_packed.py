"""Packed weights: every value as the package `gguf` reads it, and layers that compute with them."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from llm import LLM, BPETokenizer, DecoderModel, SamplingParams
from llm._rust import PACKED_SCHEMES, pack_rows, packed_bytes, unpack_rows
from llm.checkpoint import Checkpoint, atomic_directory, write_model
from llm.errors import CheckpointError, InvalidArgumentError
from llm.export import export
from llm.info import describe
from llm.models.context import ForwardContext, positions_of
from llm.models.layers.packed import PackedEmbedding, PackedLinear, PackedMatrix, packed_matrices
from llm.settings.engine import EngineConfig
from llm.settings.model import ModelConfig

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PACKED = EngineConfig(packed_weights=True)


def blocks_of(scheme: str, rows: int, cols: int, seed: int) -> np.ndarray:
    """Blocks with random codes, and scales of any finite half-precision number."""
    kind = gguf.GGMLQuantizationType[scheme]
    values, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * cols // values, num_bytes), dtype=np.uint8)
    num_scales = 2 if scheme == "Q4_1" else 1
    scales = random.integers(0, 2**16, (len(blocks), num_scales), dtype=np.uint16)
    scales[scales & 0x7C00 == 0x7C00] &= 0x83FF
    blocks[:, : 2 * num_scales] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("scheme", PACKED_SCHEMES)
def test_every_value_has_the_bits_that_gguf_computes(scheme: str) -> None:
    for seed in range(50):
        rows, cols = 1 + seed % 19, 32 * (1 + seed % 7)
        blocks = blocks_of(scheme, rows, cols, seed)
        matrix = PackedMatrix.empty(scheme, rows, cols)
        cut = rows // 2
        matrix.pack(blocks[cut:].reshape(-1), cut)
        if cut:
            matrix.pack(blocks[:cut].reshape(-1), 0)
        wanted = dequantize(blocks, gguf.GGMLQuantizationType[scheme]).reshape(rows, cols)
        assert matrix.values(torch.float32).numpy().tobytes() == wanted.tobytes()
        some = torch.tensor([rows - 1, 0])
        assert torch.equal(matrix.rows(some, torch.bfloat16), torch.from_numpy(wanted)[some].to(torch.bfloat16))


def test_sizes_that_contradict_each_other_are_refused() -> None:
    blocks, packed = np.zeros(8 * 2 * 18, np.uint8), np.zeros(packed_bytes("Q4_0", 8, 64), np.uint8)
    out = np.zeros((1, 64), np.float32)
    for call, message in (
        (lambda: packed_bytes("Q3_K", 8, 64), r"`scheme` must be one of .*, got \"Q3_K\""),
        (lambda: packed_bytes("Q4_0", 8, 40), "`cols` must be a multiple of 32, got 8 rows of 40"),
        (lambda: pack_rows("Q4_0", blocks[1:], 64, packed, 0), "can't be packed into"),
        (lambda: pack_rows("Q4_0", blocks, 64, packed, 1), "can't be packed into"),
        (lambda: unpack_rows("Q4_0", packed, np.array([8]), out), r"`rows` must be in \[0, 8\), got 8"),
        (lambda: unpack_rows("Q4_0", packed, np.array([-1]), out), r"`rows` must be in \[0, 8\), got -1"),
        (lambda: unpack_rows("Q4_0", packed, np.array([0, 1]), out), r"`out` must be \(2, a multiple of 32\)"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            call()
    for call in (lambda: pack_rows("Q4_0", blocks, 2**60, packed, 0), lambda: packed_bytes("Q4_0", 2**50, 2**50)):
        with pytest.raises(InvalidArgumentError):
            call()


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: BPETokenizer) -> dict[str, Path]:
    """A model of two layers as GGUF files of two schemes."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "tie_word_embeddings": False}
    model = DecoderModel(ModelConfig(vocab_size=384, initializer_range=0.2, max_position_embeddings=128, **sizes))
    place = tmp_path_factory.mktemp("quantised")
    with atomic_directory(place / "a") as directory:
        write_model(directory, model, tiny_tokenizer)
    return {kind: export(place / "a", place / f"{kind}.gguf", "gguf", quantization=kind) for kind in ("q8_0", "q4_0")}


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_packed_model_computes_what_the_unpacked_one_does(quantised: dict[str, Path], kind: str) -> None:
    checkpoint = Checkpoint(quantised[kind])
    packed, plain = checkpoint.model(keep_packed=True), checkpoint.model()
    assert isinstance(packed, DecoderModel)
    schemes = [matrix.scheme for matrix in packed_matrices(packed)]
    assert schemes == (["Q8_0"] * 10 if kind == "q8_0" else ["Q4_0"] * 9 + ["Q8_0"])
    assert not packed_matrices(plain)
    assert {name for name, _ in packed.named_parameters()} == {
        name for name, _ in plain.named_parameters() if "norm" in name
    }
    ids = torch.arange(40) * 7
    with torch.no_grad():
        found, wanted = (
            model(ids, positions_of((40,)), ForwardContext.for_sequences((40,))) for model in (packed, plain)
        )
    assert torch.equal(found, wanted)
    assert (packed.dtype, packed.device) == (plain.dtype, plain.device)


def test_a_tied_matrix_is_in_memory_once(tmp_path: Path, tiny_tokenizer: BPETokenizer) -> None:
    model = DecoderModel(ModelConfig(vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=1))
    with atomic_directory(tmp_path / "a") as directory:
        write_model(directory, model, tiny_tokenizer)
    file = export(tmp_path / "a", tmp_path / "a.gguf", "gguf", quantization="q8_0")
    packed = Checkpoint(file).model(keep_packed=True)
    assert isinstance(packed, DecoderModel)
    assert isinstance(packed.embed_tokens, PackedEmbedding)
    assert isinstance(packed.lm_head, PackedLinear)
    assert packed.embed_tokens.matrix is packed.lm_head.matrix
    assert len(packed_matrices(packed)) == 5


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_llm_keeps_weights_packed_if_told_to(quantised: dict[str, Path], kind: str) -> None:
    prompts = ["To be, or not", "My lord,", "O"]
    packed = LLM(quantised[kind], config=PACKED)
    assert packed_matrices(packed.engine.runner.model)
    together = [output.token_ids for output in packed.generate(prompts, GREEDY)]
    assert together == [packed.generate(prompt, GREEDY).token_ids for prompt in prompts]
    for config in (EngineConfig(), EngineConfig(packed_weights=True, backend="torch")):
        assert not packed_matrices(LLM(quantised[kind], config=config).engine.runner.model)
    plain = LLM(quantised[kind])
    difference = np.abs(packed.embed(prompts) - plain.embed(prompts)).max()
    assert difference <= 1e-6


def test_bfloat16_chooses_activations_and_cache(quantised: dict[str, Path]) -> None:
    model = LLM(quantised["q4_0"], "bfloat16", config=PACKED)
    assert model.engine.runner.model.dtype == torch.bfloat16
    assert packed_matrices(model.engine.runner.model)
    assert len(model.generate("My lord,", GREEDY).token_ids) == 12


def test_a_scale_that_is_no_number_is_refused(quantised: dict[str, Path], tmp_path: Path) -> None:
    reader = gguf.GGUFReader(quantised["q8_0"])
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    content = bytearray(quantised["q8_0"].read_bytes())
    content[tensor.data_offset : tensor.data_offset + 2] = np.float16("nan").tobytes()
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"must be finite, got NaN or infinity in layers\.1\.mlp\.gate_up"):
        LLM(tmp_path / "a.gguf", config=PACKED)


def test_info_tells_schemes_and_bits_a_weight(quantised: dict[str, Path]) -> None:
    facts = describe(quantised["q4_0"])
    assert facts["stored"] == "Q4_0 85.6 %, Q8_0 14.3 %, F32 0.186 %: 5.12 bits a weight, 0.2 MiB"
    assert facts["CPU decoding"].endswith(", Q8_0 and Q4_0 packed if `packed_weights` is set")
