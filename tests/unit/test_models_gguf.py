"""Models in GGUF files: values equal llama.cpp's and transformers' reading, and bad files are errors, never weights."""

import math
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from tokenizers.pre_tokenizers import ByteLevel

from llm.errors import CheckpointError, FileError, TokenizerError
from llm.models.gguf import read_config, read_tensors
from llm.models.gguf.rope import llama3_factors, llama3_scaling
from llm.models.gguf.types import TYPES, read_values, write_values
from llm.tokenization import load_tokenizer
from llm.tokenization.readers.gguf_file import TensorEntry, metadata_bytes
from tests.fetch_data import CACHE

SMOLLM = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"

LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": ["a", "b"],
    "tokenizer.ggml.bos_token_id": 1,
}
SHAPES = {
    "token_embd.weight": (8, 64),
    "output_norm.weight": (64,),
    "blk.0.attn_norm.weight": (64,),
    "blk.0.attn_q.weight": (64, 64),
    "blk.0.attn_k.weight": (32, 64),
}


def written(path: Path, metadata: dict, tensors: dict[str, np.ndarray]) -> Path:
    """A file of float32 tensors."""
    entries, offset = [], 0
    for name, values in tensors.items():
        entries.append(TensorEntry(name, values.shape, 0, offset))
        offset += -(-values.nbytes // 32) * 32
    head = metadata_bytes(metadata, entries)
    parts = [head, bytes(-len(head) % 32)]
    parts += [values.astype("<f4").tobytes().ljust(-(-values.nbytes // 32) * 32, b"\0") for values in tensors.values()]
    path.write_bytes(b"".join(parts))
    return path


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def llama_file(path: Path, change: dict | None = None, shapes: dict | None = None) -> Path:
    values = LLAMA | (change or {})
    return written(
        path, {key: value for key, value in values.items() if value is not None}, random_tensors(shapes or SHAPES)
    )


def random_blocks(name: str) -> np.ndarray:
    """Valid blocks: random codes, scales that are finite. Enough for two chunks, the last one not whole."""
    kind = TYPES[name]
    number = GGMLQuantizationType[name]
    num_rows, columns = 9, 256 * kind.block_values
    values = np.random.default_rng(1).standard_normal((num_rows, columns)).astype(np.float32) * 3
    values[0, : kind.block_values] = 0
    if not name.endswith("_K"):
        return gguf.quants.quantize(values, number).view(np.uint8).reshape(-1)
    blocks = np.random.default_rng(2).integers(0, 256, (num_rows * 256, kind.block_bytes), dtype=np.uint8)
    scales = np.random.default_rng(3).standard_normal((len(blocks), 2)).astype(np.float16).view(np.uint8)
    where = {"Q2_K": slice(80, 84), "Q4_K": slice(0, 4), "Q5_K": slice(0, 4)}.get(
        name, slice(kind.block_bytes - 2, None)
    )
    blocks[:, where] = scales[:, : len(range(kind.block_bytes)[where])]
    return blocks.reshape(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", list(TYPES))
def test_values_of_every_type_are_those_of_llama_cpp(name: str, dtype: torch.dtype) -> None:
    content = random_blocks(name)
    wanted = torch.from_numpy(gguf.quants.dequantize(content.reshape(9, -1), GGMLQuantizationType[name])).reshape(-1)
    assert wanted.isfinite().all()
    assert torch.equal(read_values(content, TYPES[name], dtype), wanted.to(dtype))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_values_are_quantised_as_by_llama_cpp(name: str) -> None:
    values = torch.from_numpy(np.random.default_rng(4).standard_normal((6, 128)).astype(np.float32))
    wanted = gguf.quants.quantize(values.numpy(), GGMLQuantizationType[name])
    assert bytes(write_values(values, TYPES[name])) == wanted.tobytes()


def test_tensors_are_loaded_one_by_one_into_memory_of_their_own(tmp_path: Path) -> None:
    tensors = read_tensors(llama_file(tmp_path / "a.gguf"))
    norm = tensors["model.norm.weight"]
    norm.load().zero_()
    assert norm.load().abs().sum() > 0
    assert norm.dtype == torch.float32
    assert norm.load(torch.bfloat16).dtype == torch.bfloat16


def test_a_tensor_without_a_name_at_hugging_face_keeps_its_own(tmp_path: Path) -> None:
    shapes = SHAPES | {"blk.0.attn_extra.weight": (64,)}
    assert "blk.0.attn_extra.weight" in read_tensors(llama_file(tmp_path / "a.gguf", shapes=shapes))


BAD_METADATA = {
    "architecture": ({"general.architecture": "bert"}, "must be one of llama, qwen2, qwen2moe, .*, got 'bert'"),
    "no architecture": ({"general.architecture": None}, "must be one of llama, .*, got None"),
    "two missing": (
        {"llama.block_count": None, "llama.context_length": None},
        r"`llama.block_count` is missing\n.*`llama.context_length` is missing",
    ),
    "type": ({"llama.attention.head_count": "four"}, "`llama.attention.head_count` must be one int for all layers"),
    "differs by layer": ({"llama.attention.head_count": [4, 8]}, "must be one int for all layers"),
    "zero": ({"llama.attention.head_count": 0}, "must be above 0 and finite, got 0"),
    "not finite": ({"llama.attention.layer_norm_rms_epsilon": math.nan}, "must be above 0 and finite, got nan"),
    "layers": ({"llama.block_count": 9}, "`llama.block_count` is 9, by the tensors it is 1"),
    "far too many layers": ({"llama.block_count": 4_000_000_000}, "`llama.block_count` must be at most 10,000, got 4"),
    "hidden size": ({"llama.embedding_length": 128}, "`llama.embedding_length` is 128, by the tensors it is 64"),
    "vocabulary": ({"llama.vocab_size": 7}, "`llama.vocab_size` is 7, by the tensors it is 8"),
    "partial rotary": ({"llama.rope.dimension_count": 8}, "must be the width of a head, 16, got 8"),
    "scaling": ({"llama.rope.scaling.type": "longrope"}, "must be one of none, linear, yarn, got 'longrope'"),
    "scale": ({"llama.logit_scale": 0.5}, "`llama.logit_scale` must be 0.0, got 0.5"),
    "heads": ({"llama.attention.head_count_kv": 3}, "attn_k.weight must have pairs of rows for 3 heads"),
    "alignment": ({"general.alignment": 7}, "`general.alignment` must be a multiple of 8, got 7"),
    "parts": ({"split.count": 3}, "llama-gguf-split --merge"),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_bad_hyper_parameters_are_named(tmp_path: Path, case: str) -> None:
    change, message = BAD_METADATA[case]
    with pytest.raises(CheckpointError, match=message):
        read_tensors(llama_file(tmp_path / "a.gguf", change))


def with_entry(path: Path, change: Callable[[TensorEntry], TensorEntry]) -> Path:
    """A file whose last row of the table is changed."""
    entries = [TensorEntry(name, shape, 0, 0) for name, shape in SHAPES.items()]
    head = metadata_bytes(LLAMA, [*entries[:-1], change(entries[-1])])
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(64 * 64 * 4))
    return path


BAD_ENTRIES: dict[str, tuple[Callable[[TensorEntry], TensorEntry], str]] = {
    "unsupported type": (
        lambda e: e._replace(type_id=16),
        "values of type IQ2_XXS, supported are F32, F16, BF16, Q8_0",
    ),
    "unknown type": (lambda e: e._replace(type_id=999), "values of type 999, supported are"),
    "past the end": (lambda e: e._replace(offset=1 << 40), "the file is torn"),
    "huge": (lambda e: e._replace(shape=(1 << 60, 1 << 60)), "the file is torn"),
    "no values": (lambda e: e._replace(shape=(0, 64)), r"has no values: its shape is \[0, 64\]"),
    "no dimensions": (lambda e: e._replace(shape=()), "has no values"),
    "five dimensions": (lambda e: e._replace(shape=(1, 1, 1, 1, 64)), "at most 4 dimensions, got 5"),
    "half a block": (lambda e: e._replace(shape=(4, 48), type_id=8), r"no whole blocks of 32 \(Q8_0\)"),
    "not aligned": (lambda e: e._replace(offset=4), "no multiple of 32"),
    "twice": (lambda e: e._replace(name="token_embd.weight"), "is there twice"),
}


def test_tensors_that_overlap_are_named(tmp_path: Path) -> None:
    entries = [TensorEntry(name, shape, 0, 0) for name, shape in SHAPES.items()]
    head = metadata_bytes(LLAMA, [*entries[:-1], entries[-1]._replace(offset=32)])
    (tmp_path / "a.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(64 * 64 * 4 + 32))
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "a.gguf")
    assert "tensor output_norm.weight begins at offset 0, within tensor token_embd.weight" in str(caught.value)
    assert "tensor blk.0.attn_k.weight begins at offset 32, within tensor blk.0.attn_q.weight" in str(caught.value)


def counts(num_tensors: int, num_keys: int, content: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + content


def key(name: bytes, kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + content


# The files have the bytes that they announce, each of which would be a number, a name or a row in memory.
MANY = 5 << 20
TOO_MANY: dict[str, tuple[bytes, str]] = {
    "tensors": (counts(2**40, 0, bytes(MANY)), "at most 262,144 tensors, got 1,099,511,627,776"),
    "keys": (counts(0, 2**17, bytes(MANY)), "at most 65,536 keys, got 131,072"),
    "values": (
        counts(0, 1, key(b"llama.block_count", 9, struct.pack("<IQ", 0, MANY) + bytes(MANY))),
        "lists have at most 4,194,304 values, got 5,242,880",
    ),
    "letters of a name": (
        counts(1, 0, struct.pack("<Q", MANY) + b"a" * MANY),
        "names of tensors have at most 64 bytes, got 5242880",
    ),
    "letters of an architecture": (
        counts(0, 1, key(b"general.architecture", 8, struct.pack("<Q", MANY) + b"a" * MANY)),
        "must be one of llama, .*, got 'aaaa",
    ),
}


@pytest.mark.parametrize("case", TOO_MANY)
def test_counts_far_above_any_models_are_one_short_error(tmp_path: Path, case: str) -> None:
    content, message = TOO_MANY[case]
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(tmp_path / "a.gguf")
    assert len(str(caught.value)) < 1000


def test_a_key_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    twice = key(b"llama.block_count", 4, struct.pack("<I", 1)) * 2
    (tmp_path / "a.gguf").write_bytes(counts(0, 2, twice))
    with pytest.raises(CheckpointError, match=r"`llama\.block_count` is there twice"):
        read_tensors(tmp_path / "a.gguf")


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_bad_tensors_are_named(tmp_path: Path, case: str) -> None:
    change, message = BAD_ENTRIES[case]
    with pytest.raises(CheckpointError, match=message):
        read_tensors(with_entry(tmp_path / "a.gguf", change))


def test_every_bad_tensor_is_listed(tmp_path: Path) -> None:
    entries = [TensorEntry(name, shape, 16, 0) for name, shape in SHAPES.items()]
    (tmp_path / "a.gguf").write_bytes(metadata_bytes(LLAMA, entries))
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path / "a.gguf")
    assert all(name in str(caught.value) for name in SHAPES)


def test_a_file_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = llama_file(tmp_path / "a.gguf").read_bytes()
    table = len(whole) - sum(math.prod(shape) * 4 for shape in SHAPES.values())
    for length in [*range(0, table, 7), table, len(whole) - 32 * 64 * 4, len(whole) - 1]:
        (tmp_path / "b.gguf").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_tensors(tmp_path / "b.gguf")


@pytest.mark.long
def test_a_file_with_any_byte_of_its_head_changed_is_read_or_an_error(tmp_path: Path) -> None:
    whole = llama_file(tmp_path / "a.gguf").read_bytes()
    table = len(whole) - sum(math.prod(shape) * 4 for shape in SHAPES.values())
    for at in range(table):
        for byte in (0x00, 0xFF):
            (tmp_path / "b.gguf").write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            try:
                tensors = read_tensors(tmp_path / "b.gguf")
            except CheckpointError:
                continue
            assert all(tuple(tensor.load().shape) == tensor.shape for tensor in tensors.values())


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"PK\x03\x04" + bytes(100), b"GGUF" + struct.pack(">I", 3) + bytes(16)]
)
def test_other_files_are_no_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.gguf"):
        read_config(tmp_path / "a.gguf")
    with pytest.raises(FileError, match="No such file"):
        read_config(tmp_path / "missing.gguf")


def test_scaling_is_read(tmp_path: Path) -> None:
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert read_config(llama_file(tmp_path / "a", linear))["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32768,
    }
    assert read_config(llama_file(tmp_path / "b", yarn))["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }
    none = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert "rope_scaling" not in read_config(llama_file(tmp_path / "c", none))


@pytest.mark.parametrize("scaling", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (8.0, 1.0, 3.0, 2048)])
def test_llama_3s_scaling_is_found_from_its_factors(scaling: tuple[float, float, float, int]) -> None:
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    wanted = {"rope_type": "llama3", **dict(zip(names, scaling, strict=True))}
    assert llama3_scaling(llama3_factors(wanted, 500_000.0, 128), 500_000.0, 128) == wanted


def test_factors_that_no_scaling_gives_are_an_error(tmp_path: Path) -> None:
    tensors = random_tensors(SHAPES) | {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight must hold factors that Llama 3's scaling gives"):
        read_config(written(tmp_path / "a.gguf", LLAMA, tensors))
    tensors["rope_freqs.weight"][:] = 1
    assert "rope_scaling" not in read_config(written(tmp_path / "a.gguf", LLAMA, tensors))


def by_gguf_py(path: Path, alignment: int = 32, order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE) -> Path:
    """Writes a Llama and a vocabulary of bytes, without merges, with llama.cpp's own package."""
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ByteLevel.alphabet()))
    writer.add_token_types([gguf.TokenType.NORMAL] * 256)
    writer.add_token_merges([])
    for name, values in random_tensors(SHAPES | {"token_embd.weight": (256, 64), "output_norm.weight": (63,)}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_py_leaves_empty_merges_out_and_the_file_is_read(tmp_path: Path) -> None:
    file = by_gguf_py(tmp_path / "a.gguf")
    assert "tokenizer.ggml.merges" not in gguf.GGUFReader(file).fields
    tokenizer = load_tokenizer(file)
    assert tokenizer.vocab_size == 256
    alphabet = sorted(ByteLevel.alphabet())
    assert [alphabet[token_id] for token_id in tokenizer.encode("aé\n")] == ["a", "Ã", "©", "Ċ"]
    assert tokenizer.decode(tokenizer.encode("Hé, 👋")) == "Hé, 👋"


@pytest.mark.parametrize("alignment", [8, 16, 32, 64, 4096])
def test_alignments_of_gguf_py_are_read(tmp_path: Path, alignment: int) -> None:
    file = by_gguf_py(tmp_path / "a.gguf", alignment)
    tensors = read_tensors(file)
    wanted = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    assert torch.equal(tensors["model.embed_tokens.weight"].load(), torch.tensor(wanted["token_embd.weight"]))
    assert torch.equal(tensors["model.norm.weight"].load(), torch.tensor(wanted["output_norm.weight"]))


@pytest.mark.parametrize("alignment", [1, 2, 4])
def test_alignments_below_8_are_an_error(tmp_path: Path, alignment: int) -> None:
    with pytest.raises(CheckpointError, match=f"`general.alignment` must be a multiple of 8, got {alignment}"):
        read_tensors(by_gguf_py(tmp_path / "a.gguf", alignment))


@pytest.mark.parametrize(("opened", "error"), [(read_config, CheckpointError), (load_tokenizer, TokenizerError)])
def test_a_big_endian_file_is_named(tmp_path: Path, opened: Callable[[Path], object], error: type[Exception]) -> None:
    file = by_gguf_py(tmp_path / "a.gguf", order=gguf.GGUFEndian.BIG)
    with pytest.raises(error, match=r"a\.gguf: must be in little-endian order, got a big-endian file"):
        opened(file)
