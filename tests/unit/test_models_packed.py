"""Packed weights: every value as the package `gguf` reads it, and layers that compute with them."""

import mmap
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import typer
from gguf.quants import dequantize
from typer.testing import CliRunner

from llm import LLM, BPETokenizer, DecoderModel, SamplingParams
from llm._rust import PACKED_SCHEMES, pack_rows, packed_bytes, unpack_rows
from llm.checkpoint import Checkpoint, atomic_directory, write_model
from llm.checkpoint.weights import build_model
from llm.cli.options import with_options
from llm.errors import CheckpointError, ConfigError, InvalidArgumentError, LLMWarning
from llm.export import export
from llm.info import describe
from llm.models.context import ForwardContext, positions_of
from llm.models.families import family_named
from llm.models.gguf.lazy import LazyTensor
from llm.models.gguf.names import Layout
from llm.models.gguf.reader import read_tensors
from llm.models.hf import empty_model
from llm.models.layers.packed import PackedEmbedding, PackedLinear, PackedMatrix, PackedPart, packed_matrices
from llm.models.tensor_files import OnDisk
from llm.settings.engine import EngineConfig, NgramSpeculation
from llm.settings.merge import validated
from llm.settings.model import ModelConfig
from llm.tokenization.readers.gguf_file import TensorEntry
from tests.quantised_checkpoints import logits_of_kernels
from tests.rounding import deviations

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PACKED = EngineConfig(packed_weights=True)
EXPANDED = EngineConfig(packed_weights=False)
# Bytes of half-precision numbers in a block; 0 and 1 in all other schemes.
HALVES = dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), slice(0, 4)) | {"Q6_K": slice(208, 210)}


def blocks_of(scheme: str, rows: int, blocks_per_row: int, seed: int) -> np.ndarray:
    """Blocks with random codes, and scales of any finite half-precision number."""
    kind = gguf.GGMLQuantizationType[scheme]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * blocks_per_row, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    if scheme == "MXFP4":  # an exponent whose power of two half precision has
        blocks[:, 0] = 104 + blocks[:, 0] % 40
        return blocks.reshape(rows, -1)
    place = HALVES.get(scheme, slice(0, 2))
    scales = np.ascontiguousarray(blocks[:, place]).view(np.uint16)
    scales[scales & 0x7C00 == 0x7C00] &= 0x83FF
    blocks[:, place] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


def packed_from(parts: list[PackedPart], blocks: list[np.ndarray], cols: int) -> PackedMatrix:
    """Packs the blocks of all parts, each in two pieces, the last one first."""
    matrix, start = PackedMatrix.empty(parts, cols), 0
    for part, content in zip(parts, blocks, strict=True):
        cut = part.num_rows // 2
        matrix.pack(content[cut:].reshape(-1), start + cut)
        if cut:
            matrix.pack(content[:cut].reshape(-1), start)
        start += part.num_rows
    return matrix


def values_of(part: PackedPart, blocks: np.ndarray, cols: int) -> np.ndarray:
    return dequantize(blocks, gguf.GGMLQuantizationType[part.scheme]).reshape(part.num_rows, cols)


@pytest.mark.parametrize("scheme", PACKED_SCHEMES)
def test_every_value_has_the_bits_that_gguf_computes(scheme: str) -> None:
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[scheme]][0]
    for seed in range(50):
        part, num_blocks = PackedPart(scheme, 1 + seed % 19), 1 + seed % (7 if size == 32 else 3)
        blocks = blocks_of(scheme, part.num_rows, num_blocks, seed)
        matrix = packed_from([part], [blocks], num_blocks * size)
        wanted = values_of(part, blocks, num_blocks * size)
        assert matrix.values(torch.float32).numpy().tobytes() == wanted.tobytes()
        some = torch.tensor([part.num_rows - 1, 0])
        assert torch.equal(matrix.rows(some, torch.bfloat16), torch.from_numpy(wanted)[some].to(torch.bfloat16))


def test_parts_of_several_schemes_form_one_matrix() -> None:
    parts = [PackedPart("Q4_K", 16), PackedPart("Q8_0", 8), PackedPart("Q6_K", 5)]
    blocks = [blocks_of(part.scheme, part.num_rows, 16 if part.scheme == "Q8_0" else 2, 3) for part in parts]
    matrix = packed_from(parts, blocks, 512)
    wanted = np.concatenate([values_of(part, content, 512) for part, content in zip(parts, blocks, strict=True)])
    assert (matrix.num_rows, matrix.schemes) == (29, ("Q4_K", "Q8_0", "Q6_K"))
    assert matrix.values(torch.float32).numpy().tobytes() == wanted.tobytes()
    ids = [28, 3, 16, 23, 24, 3]
    assert matrix.rows(torch.tensor(ids), torch.float32).numpy().tobytes() == wanted[ids].tobytes()


def test_sizes_that_contradict_each_other_are_refused() -> None:
    blocks, packed = np.zeros(8 * 2 * 18, np.uint8), np.zeros(packed_bytes("Q4_0", 8, 64), np.uint8)
    out = np.zeros((1, 64), np.float32)
    for call, message in (
        (lambda: packed_bytes("Q3_K", 8, 64), r"`scheme` must be one of .*, got \"Q3_K\""),
        (lambda: packed_bytes("Q4_0", 8, 40), "`cols` must be a multiple of 32, got 8 rows of 40"),
        (lambda: packed_bytes("Q4_K", 8, 64), "`cols` must be a multiple of 256, got 8 rows of 64"),
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
    schemes = [matrix.schemes[0] for matrix in packed_matrices(packed)]
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


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_logits_move_as_far_as_rounded_activations_explain(quantised: dict[str, Path], kind: str) -> None:
    checkpoint = Checkpoint(quantised[kind])
    packed, plain = checkpoint.model(keep_packed=True), checkpoint.model()
    assert isinstance(packed, DecoderModel)
    assert isinstance(plain, DecoderModel)
    ids = [token * 7 % 384 for token in range(40)]
    with torch.no_grad():
        wanted = plain(torch.tensor(ids), positions_of((40,)), ForwardContext.for_sequences((40,)))
    moved = logits_of_kernels(packed, torch.tensor(ids)) - wanted
    pairs = [(position, token, (token + 131) % 384) for position in range(0, 40, 2) for token in (3, 200)]
    found = torch.tensor([float(moved[place, a] - moved[place, b]) for place, a, b in pairs])
    ratios = found / torch.tensor(deviations(plain, ids, pairs))
    assert ratios.abs().max() < 4
    # Below 1, since some inputs are whole codes: the largest of each group, and embeddings of Q8_0 in the first layer.
    assert 0.5 < ratios.square().mean().sqrt() < 1.2


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
def test_llm_keeps_weights_packed_unless_told_otherwise(quantised: dict[str, Path], kind: str) -> None:
    prompts = ["To be, or not", "My lord,", "O"]
    packed = LLM(quantised[kind])
    assert packed_matrices(packed.engine.runner.model)
    together = [output.token_ids for output in packed.generate(prompts, GREEDY)]
    assert together == [packed.generate(prompt, GREEDY).token_ids for prompt in prompts]
    for config in (EXPANDED, EngineConfig(backend="torch")):
        assert not packed_matrices(LLM(quantised[kind], config=config).engine.runner.model)
    plain = LLM(quantised[kind], config=EXPANDED)
    difference = np.abs(packed.embed(prompts) - plain.embed(prompts)).max()
    assert difference <= 1e-6


def test_weights_that_must_stay_packed_but_cannot_are_refused(quantised: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`packed_weights` must be auto or false .*, got true: .* `backend` torch"):
        LLM(quantised["q8_0"], config=EngineConfig(packed_weights=True, backend="torch"))
    with pytest.raises(ConfigError, match="don't take weights of float16"):
        LLM(quantised["q8_0"], "float16", config=PACKED)
    with pytest.warns(
        LLMWarning, match="quantised weights are expanded, since the kernels don't take weights of float16"
    ):
        assert not packed_matrices(LLM(quantised["q8_0"], "float16").engine.runner.model)


def test_the_option_takes_three_words() -> None:
    given: list[Any] = []

    @with_options(EngineConfig, skip={"speculative"})
    def command(**values: Any) -> None:
        given.append(validated(EngineConfig(**values)).packed_weights)

    app = typer.Typer()
    app.command()(command)
    for word in ("true", "false", "auto"):
        assert CliRunner().invoke(app, ["--packed-weights", word]).exit_code == 0
    assert given == [True, False, "auto"]
    assert isinstance(CliRunner().invoke(app, ["--packed-weights", "maybe"]).exception, ConfigError)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_tokens": 8, "max_prefill_chunk": 8},
        {"enable_prefix_caching": False, "block_size": 8},
        {"max_running_requests": 1},
        {"speculative": NgramSpeculation(num_draft_tokens=3, min_ngram=1)},
    ],
)
def test_packed_answers_do_not_depend_on_the_schedule(quantised: dict[str, Path], settings: dict[str, Any]) -> None:
    prompts = ["To be, or not to be, or not to", "To be, or not to be, my lord", "O"]
    wanted = [output.token_ids for output in LLM(quantised["q4_0"], config=PACKED).generate(prompts, GREEDY)]
    model = LLM(quantised["q4_0"], config=EngineConfig(packed_weights=True, **settings))
    for _ in range(2):
        assert [output.token_ids for output in model.generate(prompts, GREEDY)] == wanted


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
    with pytest.raises(CheckpointError, match=r"infinity in model\.layers\.1\.mlp\.up_proj\.weight:"):
        LLM(tmp_path / "a.gguf", config=PACKED)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_released_tensor_leaves_memory_and_can_be_read_again(quantised: dict[str, Path]) -> None:
    tensor = read_tensors(quantised["q8_0"])["model.embed_tokens.weight"]
    before = tensor.blocks().copy()
    held = resident_bytes(quantised["q8_0"])
    tensor.release()
    assert resident_bytes(quantised["q8_0"]) <= held - before.nbytes + 2 * mmap.PAGESIZE
    assert np.array_equal(tensor.blocks(), before)


def resident_bytes(file: Path) -> int:
    """Bytes of a mapped file that are in memory."""
    maps = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(encoding="utf-8"))
    own = [text for text in maps if text.partition("\n")[0].endswith(f" {file}")]
    return sum(int(found) * 1024 for text in own for found in re.findall(r"(?m)^Rss: +(\d+) kB", text))


def test_info_tells_schemes_and_bits_a_weight(quantised: dict[str, Path]) -> None:
    facts = describe(quantised["q4_0"])
    assert facts["stored"] == "Q4_0 85.6 %, Q8_0 14.3 %, F32 0.186 %: 5.12 bits a weight, 0.2 MiB"
    # 384 * 128 values of the head in Q8_0, 2 layers of 122,880 in Q4_0.
    expanded, packed = (49_152 + 245_760) * 4 + 640 * 4, 49_152 / 32 * 34 + 245_760 / 32 * 18 + 640 * 4
    assert facts["weights a step"] == (
        f"{packed / 2**20:.1f} MiB: Q8_0 and Q4_0 packed; {expanded / 2**20:.1f} MiB with `packed_weights` false"
    )


MIXED = {
    "embed_tokens": "Q5_0",
    "self_attn.q_proj": "Q4_K",
    "self_attn.k_proj": "Q4_K",
    "self_attn.v_proj": "Q6_K",
    "self_attn.o_proj": "Q5_K",
    "mlp.gate_proj": "Q4_K",
    "mlp.up_proj": "Q5_1",
    "mlp.down_proj": "Q6_K",
}
VALUES = {
    "model_type": "llama",
    "vocab_size": 384,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def mixed_tensors(types: dict[str, str]) -> dict[str, OnDisk]:
    """Tensors of a model in these types: norms of one, and matrices with random codes and small scales."""
    family = family_named(VALUES)
    config = family.config_from(VALUES)
    found: dict[str, OnDisk] = {}
    for name, empty in empty_model(config).named_parameters():
        for piece in family.pieces(name, empty, config):
            shape = tuple(piece.view.shape)
            scheme = next((types[part] for part in types if f"{part}.weight" in piece.name), "F32")
            kind = gguf.GGMLQuantizationType[scheme]
            content = np.ones(shape, np.float32).view(np.uint8)
            if scheme != "F32":
                content = blocks_of(scheme, shape[0], shape[1] // gguf.GGML_QUANT_SIZES[kind][0], len(found))
                content = with_small_scales(scheme, content)
            entry = TensorEntry(piece.name, shape, int(kind), 0)
            found[piece.name] = LazyTensor(content.reshape(-1), entry, Layout.SAME, 0)
    return found


def with_small_scales(scheme: str, rows: np.ndarray) -> np.ndarray:
    """Replaces all half-precision numbers, so that values are below one half."""
    blocks = rows.reshape(-1, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[scheme]][1])
    is_wide = scheme.endswith("_K")
    place = slice(108, 110) if scheme == "Q3_K" else HALVES.get(scheme, slice(0, 2))
    blocks[:, place] = np.frombuffer(np.float16(2e-5 if is_wide else 4e-3).tobytes() * 2, np.uint8)[
        : place.stop - place.start
    ]
    return blocks.reshape(len(rows), -1)


def test_matrices_of_several_schemes_stay_packed_and_run_on_the_kernels() -> None:
    tensors = mixed_tensors(MIXED)
    packed, plain = (
        build_model(VALUES, tensors, torch.float32, torch.device("cpu"), keep_packed=keep) for keep in (True, False)
    )
    assert isinstance(packed, DecoderModel)
    assert isinstance(plain, DecoderModel)
    assert [matrix.parts for matrix in packed_matrices(packed)] == [
        (("Q5_0", 384),),
        (("Q4_K", 384), ("Q6_K", 128)),
        (("Q5_K", 256),),
        (("Q4_K", 512), ("Q5_1", 512)),
        (("Q6_K", 256),),
    ]
    ids = torch.arange(40) * 7
    with torch.no_grad():
        found, wanted = (
            model(ids, positions_of((40,)), ForwardContext.for_sequences((40,))) for model in (packed, plain)
        )
    assert torch.equal(found, wanted)
    error = (logits_of_kernels(packed, ids) - wanted).abs().max() / wanted.abs().max()
    assert float(error) <= 0.03


def test_a_matrix_with_a_part_that_cannot_be_packed_is_expanded() -> None:
    tensors = mixed_tensors(MIXED | {"self_attn.k_proj": "Q3_K"})
    packed = build_model(VALUES, tensors, torch.float32, torch.device("cpu"), keep_packed=True)
    assert isinstance(packed, DecoderModel)
    assert len(packed_matrices(packed)) == 4
    assert packed.get_parameter("layers.0.attention.qkv_proj.weight").shape == (512, 256)
