"""What is written: a directory in the layout of compressed-tensors, or a GGUF file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import torch
from torch import Tensor

from llm.checkpoint import atomic_directory, plan_files, write_description
from llm.checkpoint.space import explains_failed_writes
from llm.errors import CheckpointError, InternalError
from llm.models.gguf import EncodedRows, encode_groups, matrix_kind, model_metadata, write_gguf_model
from llm.models.gguf.names import family_of as gguf_family
from llm.quantizing.grid import Grid, Grouped
from llm.quantizing.source import Cut, Source
from llm.quantizing.spool import Spool
from llm.settings.quantization import GROUP_SIZES, QuantizationConfig
from llm.settings.run import GenerationConfig

Quantized: TypeAlias = Grouped | EncodedRows
# What is left of the settings of `compressed-tensors` that this package does not use.
_UNUSED: dict[str, Any] = {
    "global_compression_ratio": None,
    "kv_cache_scheme": None,
    "sparsity_config": {},
    "transform_config": {},
}
# Types of GGUF files that are integers with a scale.
_GRID_BITS = {"Q4_0": 4, "Q8_0": 8}
# Keys of a `config.json` that the family doesn't write.
_DESCRIBED = ("dtype", "bos_token_id", "eos_token_id", "pad_token_id")


class Output(Protocol):
    """Takes tensors as they are made.

    Attributes:
        source: The model.
        dtype: Type of what is not quantised.
    """

    source: Source
    dtype: torch.dtype

    def grid(self, num_columns: int) -> Grid | None:
        """Returns the integers of a matrix; None if its type is no grid."""

    def rounded(self, matrix: Tensor) -> Quantized:
        """Returns a matrix in the type of its columns, for types that are no grid."""

    def top(self, name: str, values: Tensor) -> Tensor:
        """Takes a parameter outside the blocks and returns its values as stored."""

    def stored_head(self, values: Tensor) -> Tensor:
        """Returns the values of a tied output projection as stored."""

    def add(self, name: str, values: Tensor) -> Tensor:
        """Takes a tensor that is not quantised, by its name on disk, and returns its values as stored."""

    def add_matrix(self, cut: Cut, matrix: Quantized) -> int:
        """Takes a quantised matrix and returns its bytes."""


class Directory:
    """A checkpoint that transformers, vLLM and this package open.

    Integers of weights alone are packed into words of 32 bits (`pack-quantized`); with integer activations they are
    bytes (`int-quantized`).
    """

    def __init__(self, spool: Spool, config: QuantizationConfig, source: Source, dtype: torch.dtype) -> None:
        self.spool, self.config, self.source, self.dtype = spool, config, source, dtype
        self.is_packed = config.stored != "w8a8"
        self.bits = 4 if config.stored == "int4" else 8

    def grid(self, num_columns: int) -> Grid:
        """Returns the integers of all matrices."""
        del num_columns
        return Grid(self.bits, self.config.group_size if self.is_packed else None, self.dtype)

    def rounded(self, matrix: Tensor) -> Quantized:
        """Raises an error: all matrices are grids."""
        raise InternalError(f"a matrix {list(matrix.shape)} has no grid; please report it")

    def top(self, name: str, values: Tensor) -> Tensor:
        """Takes embeddings, norms and the output projection, which keep their type."""
        for piece in self.source.pieces(name, values):
            self.add(piece.name, piece.extract())
        return values.to(self.dtype).float()

    def stored_head(self, values: Tensor) -> Tensor:
        """Returns the values of a tied output projection in the type of the checkpoint."""
        return values.to(self.dtype).float()

    def add(self, name: str, values: Tensor) -> Tensor:
        """Takes a tensor in the type of the checkpoint."""
        # Rounding the numbers that correct scores would change which experts are chosen.
        stored = values if name.endswith("score_correction_bias") else values.to(self.dtype)
        self.spool.add(name, stored)
        return stored.float()

    def add_matrix(self, cut: Cut, matrix: Quantized) -> int:
        """Takes integers and scales of the rows of one tensor on disk."""
        if not isinstance(matrix, Grouped):
            raise InternalError(f"{cut.name} is in blocks of a GGUF file; please report it")
        part, name = matrix.take(cut.rows), cut.name.removesuffix(".weight")
        scales = part.scales.to(self.dtype)
        if not self.is_packed:
            self.spool.add(f"{name}.weight", part.codes)
            self.spool.add(f"{name}.weight_scale", scales)
            return part.codes.nbytes + scales.nbytes
        words = packed(part.codes, self.bits)
        self.spool.add(f"{name}.weight_packed", words)
        self.spool.add(f"{name}.weight_scale", scales)
        self.spool.add(f"{name}.weight_shape", torch.tensor(part.codes.shape))
        return words.nbytes + scales.nbytes


def packed(codes: Tensor, bits: int) -> Tensor:
    """Returns integers of 4 or 8 bits in words: int8 `[O, I]` as int32 `[O, I * bits / 32]`, the first one lowest.

    Source: compressed-tensors `compressors/pack_quantized/helpers.py`, `pack_to_int32`.
    """
    unsigned = (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    if bits == 4:
        unsigned = unsigned[:, ::2] | unsigned[:, 1::2] << 4
    return unsigned.contiguous().view(torch.int32)


def settings_of(config: QuantizationConfig, ignore: list[str]) -> dict[str, Any]:
    """Returns the `quantization_config` of a `config.json`."""
    is_packed = config.stored != "w8a8"
    layout = "pack-quantized" if is_packed else "int-quantized"
    weights: dict[str, Any] = {
        "num_bits": 4 if config.stored == "int4" else 8,
        "type": "int",
        "symmetric": True,
        "group_size": config.group_size if is_packed else None,
        "strategy": "group" if is_packed else "channel",
        "dynamic": False,
    }
    if config.chosen_method == "gptq" and config.act_order:
        weights["actorder"] = "weight"
    inputs = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "group_size": None,
        "strategy": "token",
        "dynamic": True,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None if is_packed else inputs,
        "output_activations": None,
        "format": layout,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        **_UNUSED,
    }


@contextmanager
def open_directory(target: Path, source: Source, config: QuantizationConfig, facts: "Facts") -> Iterator[Directory]:
    """Yields an output whose directory is at `target` once all is in it."""
    with atomic_directory(target) as directory:
        with Spool.at(directory / "spool") as spool:
            yield Directory(spool, config, source, facts.dtype)
            spool.write_safetensors(directory / "model.safetensors")
        model = source.model.to(facts.dtype)
        write_description(directory, model, plan_files(model, max_bytes=1 << 62), source.tokenizer, facts.generation)
        file = directory / "config.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        values = source.family.config_to(source.config) | {key: values[key] for key in _DESCRIBED if key in values}
        values["quantization_config"] = settings_of(config, facts.ignore)
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


class Facts(msgspec.Struct, frozen=True):
    """What a directory holds beside its weights.

    Attributes:
        dtype: Type of activations, scales and all that is not quantised.
        ignore: Linear layers that are not quantised, by their names on disk.
        generation: Sampling defaults.
    """

    dtype: torch.dtype
    ignore: list[str]
    generation: GenerationConfig


class File:
    """A GGUF file that llama.cpp and this package open."""

    dtype = torch.float32

    def __init__(self, spool: Spool, config: QuantizationConfig, source: Source) -> None:
        self.spool, self.quantization, self.source = spool, config.stored, source
        self.encoded: dict[str, EncodedRows] = {}

    def grid(self, num_columns: int) -> Grid | None:
        """Returns the integers of Q4_0 and Q8_0."""
        kind = matrix_kind(self.quantization, num_columns)
        if self.quantization.upper() != kind.name or kind.name not in _GRID_BITS:
            return None
        return Grid(_GRID_BITS[kind.name], kind.block_values, torch.float16)

    def rounded(self, matrix: Tensor) -> Quantized:
        """Returns rows of the type that the number of columns allows."""
        return EncodedRows.of(matrix, matrix_kind(self.quantization, matrix.shape[1]))

    def top(self, name: str, values: Tensor) -> Tensor:
        """Takes a parameter outside the blocks; embeddings and the output projection are quantised too."""
        is_tied = self.source.config.tie_word_embeddings
        if not name.startswith(("embed_tokens", "lm_head")):
            for piece in self.source.pieces(name, values):
                self.add(piece.name, piece.extract())
            return values
        is_output = name.startswith("lm_head") or is_tied
        kind = matrix_kind(self.quantization, values.shape[1], is_output=is_output)
        rows = EncodedRows.of(values, kind)
        [piece] = self.source.pieces(name, values)
        self._keep(piece.name, rows)
        return rows.values()

    def stored_head(self, values: Tensor) -> Tensor:
        """Returns the values of a tied output projection, which is the embeddings' matrix."""
        return EncodedRows.of(values, matrix_kind(self.quantization, values.shape[1], is_output=True)).values()

    def add(self, name: str, values: Tensor) -> Tensor:
        """Takes a tensor in fp32."""
        self.spool.add(name, values)
        return values

    def add_matrix(self, cut: Cut, matrix: Quantized) -> int:
        """Takes the rows of one tensor on disk."""
        part = matrix.take(cut.rows)
        if isinstance(part, Grouped):
            part = encode_groups(part.codes, part.scales, matrix_kind(self.quantization, part.codes.shape[1]))
        self._keep(cut.name, part.transposed() if cut.is_transposed else part)
        return part.rows.nbytes

    def _keep(self, name: str, rows: EncodedRows) -> None:
        self.spool.add(name, rows.rows)
        self.encoded[name] = EncodedRows(rows.kind, rows.shape, torch.empty(0))

    def tensors(self) -> "Mapping[str, Tensor | EncodedRows]":
        """Returns everything that was taken, mapped from the spool."""
        return _Kept(self)


class _Kept(Mapping[str, Tensor | EncodedRows]):
    def __init__(self, file: File) -> None:
        self._file = file

    def __getitem__(self, name: str) -> Tensor | EncodedRows:
        tensor, known = self._file.spool[name], self._file.encoded.get(name)
        return tensor if known is None else EncodedRows(known.kind, known.shape, tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.spool)

    def __len__(self) -> int:
        return len(self._file.spool)


@contextmanager
def open_file(target: Path, source: Source, config: QuantizationConfig) -> Iterator[File]:
    """Yields an output whose file is at `target` once all is in it.

    Raises:
        FileError: The file can't be written.
    """
    with explains_failed_writes(target), _spool_beside(target) as spool:
        file = File(spool, config, source)
        yield file
        values = source.family.config_to(source.config)
        write_gguf_model(target, values, file.tensors(), source.tokenizer, quantization=config.stored)


@contextmanager
def _spool_beside(target: Path) -> Iterator[Spool]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Spool.at(target.with_name(f".tmp-{target.name}.spool")) as spool:
        yield spool


def check_cuts(config: QuantizationConfig, name: str, shape: torch.Size, cuts: list[Cut]) -> list[str]:
    """Returns what keeps a matrix from being written as compressed-tensors."""
    problems = []
    if any(cut.is_transposed for cut in cuts):
        problems.append(f"{cuts[0].name} is no linear layer in transformers, but a transposed one")
    size = config.group_size if config.stored != "w8a8" else 1
    if shape[-1] % size:
        fits = " and ".join(str(each) for each in GROUP_SIZES if shape[-1] % each == 0) or "none"
        problems.append(f"{name} has rows of {shape[-1]}, which `group_size` {size} doesn't divide ({fits} would)")
    return problems


def check_gguf(source: Source, target: Path, quantization: str) -> None:
    """Checks that llama.cpp knows the model and its tokenizer, and has its matrices whole, before any work.

    Raises:
        CheckpointError: A GGUF file can't contain the model.
        TokenizerError: A GGUF file can't contain the tokenizer.
    """
    values = source.family.config_to(source.config)
    family = gguf_family(values)
    parts = {whole: join.parts for whole, join in family.joins.items() if len(join.parts) > 1}
    refuse(
        [f"{whole} is {' and '.join(names)} in a GGUF file" for whole, names in parts.items()],
        "`llm export --format gguf` with `--quantization` writes such a file",
    )
    model_metadata(target, values, source.tokenizer, quantization=quantization)


def refuse(problems: list[str], hint: str) -> None:
    """Raises an error that lists problems, if there are any.

    Raises:
        CheckpointError: There are problems.
    """
    if problems:
        raise CheckpointError("this model can't be quantised so:\n  " + "\n  ".join(problems) + f"\nhint: {hint}")
