"""Triton kernels of packed weights against unpacked values: on a GPU as compiled, elsewhere in Triton's interpreter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from llm import LLM, BPETokenizer, DecoderModel, SamplingParams
from llm._rust import pack_rows, packed_bytes, unpack_rows
from llm.checkpoint import Checkpoint, atomic_directory, write_model
from llm.export import export
from llm.inference import EngineConfig
from llm.info import describe
from llm.models.context import ForwardContext, positions_of
from llm.models.layers import fused, triton_packed
from llm.models.layers.packed import SCHEMES_ON_CUDA, PackedMatrix, PackedPart, packed_matrices
from llm.models.packing import expanded_tensors
from llm.settings.model import ModelConfig

# Takes half a minute; `make check` leaves it out.
pytestmark = pytest.mark.long

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter multiplies matrices of bfloat16 as if they were integers.
HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
ROUNDING = {torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}
# Half-precision numbers, and codes, of a block of 32 columns.
BYTES = {"Q4_0": (1, 16), "Q4_1": (2, 16), "Z4": (2, 16), "Q8_0": (1, 32), "Z8": (2, 32)}


def blocks_of(scheme: str, num_rows: int, num_cols: int, seed: int) -> np.ndarray:
    """Random blocks: scales of both signs, minima as large as values, zero points that are whole numbers."""
    random = np.random.default_rng(seed)
    num_halves, num_codes = BYTES[scheme]
    shape = (num_rows, num_cols // 32)
    halves = random.normal(0.0, 0.02, (*shape, num_halves)).astype(np.float16)
    if scheme in {"Z4", "Z8"}:
        halves[..., 1] = random.integers(0, 16, shape) if scheme == "Z4" else random.integers(-128, 128, shape)
    codes = random.integers(0, 256, (*shape, num_codes), dtype=np.uint8)
    return np.concatenate([halves.view(np.uint8), codes], axis=-1).reshape(-1)


def matrix_of(parts: list[tuple[str, int]], num_cols: int, seed: int, *, is_ordered: bool = False) -> PackedMatrix:
    """A packed matrix, on the CPU."""
    order = torch.randperm(num_cols, generator=torch.Generator().manual_seed(seed)) if is_ordered else None
    matrix = PackedMatrix.empty([PackedPart(*part) for part in parts], num_cols, order=order)
    first = 0
    for scheme, num_rows in parts:
        matrix.pack(blocks_of(scheme, num_rows, num_cols, seed + first), first)
        first += num_rows
    return matrix


def numbers(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has the kernels read packed weights on any device; returns the names of those that ran."""
    names: list[str] = []

    class Counted:
        MAX_ROWS = triton_packed.MAX_ROWS

        def __getattr__(self, name: str) -> object:
            names.append(name)
            return getattr(triton_packed, name)

    counted = Counted()
    monkeypatch.setattr(fused, "reads_packed", lambda packed: True)
    monkeypatch.setattr(fused, "packed_kernels", lambda: counted)
    return names


def test_the_kernels_know_the_schemes_that_are_kept_for_them() -> None:
    assert triton_packed.is_taken(SCHEMES_ON_CUDA)
    assert not triton_packed.is_taken(["Q4_0", "Q6_K"])


@pytest.mark.parametrize("scheme", SCHEMES_ON_CUDA)
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_unpacked_values_have_the_bits_of_the_kernels_for_the_cpu(scheme: str, dtype: torch.dtype) -> None:
    for num_rows, num_cols in [(1, 32), (37, 160), (70, 544)]:
        blocks = blocks_of(scheme, num_rows, num_cols, seed=num_cols)
        packed = np.zeros(packed_bytes(scheme, num_rows, num_cols), dtype=np.uint8)
        pack_rows(scheme, blocks, num_cols, packed, 0)
        ids = np.random.default_rng(1).integers(0, num_rows, 45)
        expected = np.empty((len(ids), num_cols), dtype=np.float32)
        unpack_rows(scheme, packed, ids, expected)
        found = torch.full((len(ids), num_cols), torch.nan, dtype=dtype, device=DEVICE)
        place = torch.from_numpy(ids).to(DEVICE)
        triton_packed.unpack(place, scheme, torch.from_numpy(packed).to(DEVICE), num_rows, found)
        torch.testing.assert_close(found.cpu(), torch.from_numpy(expected).to(dtype), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@settings(max_examples=12, deadline=None)
@given(
    num_rows=st.sampled_from([1, 2, 16, 17, 64]),
    parts=st.lists(st.tuples(st.sampled_from(SCHEMES_ON_CUDA), st.sampled_from([8, 40, 72])), min_size=1, max_size=3),
    rest=st.sampled_from([0, 1, 5]),
    groups=st.sampled_from([1, 3, 4, 9]),
    is_ordered=st.booleans(),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_products_are_those_of_the_unpacked_values(
    num_rows: int,
    parts: list[tuple[str, int]],
    rest: int,
    groups: int,
    is_ordered: bool,
    has_bias: bool,
    seed: int,
    dtype: torch.dtype,
) -> None:
    num_cols = 32 * groups
    parts[-1] = (parts[-1][0], parts[-1][1] + rest)
    matrix = matrix_of(parts, num_cols, seed, is_ordered=is_ordered)
    weights = matrix.values(torch.float32).to(DEVICE, dtype)
    values = numbers(seed, 1, num_rows, num_cols, dtype=dtype)
    bias = numbers(seed + 1, matrix.num_rows, dtype=dtype) if has_bias else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "reads_packed", lambda packed: True)
        found = matrix.on(DEVICE).product(values, bias)
    assert found.shape == (1, num_rows, matrix.num_rows)
    wide, terms = values.double(), weights.double()
    expected = F.linear(wide, terms, None if bias is None else bias.double())
    # Sums of fp32 in any order, then a rounding to the type, once more with a bias.
    size = F.linear(wide.abs(), terms.abs()) + (0 if bias is None else bias.double().abs())
    bound = size * num_cols * 2**-24 + (expected.abs() + size * has_bias) * ROUNDING[dtype]
    assert bool(((found.double() - expected).abs() <= bound).all())


def test_rows_do_not_depend_on_their_neighbours(kernels: list[str]) -> None:
    matrix = matrix_of([("Q4_0", 40)], 320, seed=3).on(DEVICE)
    values = numbers(4, 9, 320, dtype=torch.float32)
    whole = matrix.product(values)
    for row in range(9):
        torch.testing.assert_close(matrix.product(values[row : row + 1]), whole[row : row + 1], atol=0, rtol=0)
    assert "multiply" in kernels


def test_many_rows_are_multiplied_with_unpacked_values(kernels: list[str]) -> None:
    matrix = matrix_of([("Q8_0", 24)], 64, seed=5).on(DEVICE)
    values = numbers(6, triton_packed.MAX_ROWS + 1, 64, dtype=torch.float32)
    torch.testing.assert_close(matrix.product(values), F.linear(values, matrix.values(torch.float32)), atol=0, rtol=0)
    assert "unpack" in kernels
    assert "multiply" not in kernels
    assert matrix.product(values[:0]).shape == (0, 24)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: BPETokenizer) -> Path:
    """A model of two layers as a GGUF file of Q4_0 and Q8_0, whose head is its embedding."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
    }
    model = DecoderModel(ModelConfig(vocab_size=384, initializer_range=0.2, max_position_embeddings=128, **sizes))
    place = tmp_path_factory.mktemp("quantised")
    with atomic_directory(place / "a") as directory:
        write_model(directory, model, tiny_tokenizer)
    return export(place / "a", place / "q4_0.gguf", "gguf", quantization="q4_0")


@torch.no_grad()
def test_a_model_of_packed_layers_computes_what_the_unpacked_one_does(quantised: Path, kernels: list[str]) -> None:
    checkpoint = Checkpoint(quantised)
    packed, plain = checkpoint.model(device=DEVICE, keep_packed=True), checkpoint.model(device=DEVICE)
    assert isinstance(packed, DecoderModel)
    assert isinstance(plain, DecoderModel)
    matrices = packed_matrices(packed)
    assert {scheme for matrix in matrices for scheme in matrix.schemes} == {"Q4_0", "Q8_0"}
    assert all(matrix.data.device.type == DEVICE.type for matrix in matrices)
    # One of the embedding and the head, and four of each layer.
    assert len(matrices) == 9
    for length in (5, triton_packed.MAX_ROWS + 3):
        ids = torch.arange(length, device=DEVICE) * 7 % 384
        context = ForwardContext.for_sequences([length])
        found, wanted = (model(ids, positions_of([length], DEVICE), context) for model in (packed, plain))
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)
    assert kernels.count("multiply") == 9


@pytest.mark.gpu
def test_answers_on_a_gpu_are_those_of_expanded_weights(quantised: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    packed, plain = (
        LLM(quantised, "float32", device="cuda", config=EngineConfig(packed_weights=keep)) for keep in (True, False)
    )
    assert packed_matrices(packed.engine.runner.model)
    assert packed.generate("My lord,", params).token_ids == plain.generate("My lord,", params).token_ids


def test_what_the_kernels_do_not_read_is_named(quantised: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert describe(quantised)["CUDA decoding"].endswith("Triton kernels on Q8_0 and Q4_0 with `packed_weights` true")
    assert expanded_tensors(*Checkpoint(quantised).opened(), torch.device("cuda")) == {}
    assert "CUDA decoding" not in describe(tiny_checkpoint)
