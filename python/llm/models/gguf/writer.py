"""Writes models as GGUF files that llama.cpp runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from llm.errors import CheckpointError, InvalidArgumentError, TokenizerError
from llm.models.gguf.metadata import complete, hyper_parameters, rope_tensors
from llm.models.gguf.names import Layout, family_of, pair_rows
from llm.models.gguf.plan import QUANTIZATIONS, Plan, Planned, Tensors
from llm.models.gguf.types import TYPES, EncodedRows, write_values
from llm.tokenization import BaseTokenizer, BPETokenizer
from llm.tokenization.files import StrPath, replaced_file
from llm.tokenization.readers.gguf_file import TensorEntry, metadata_bytes
from llm.tokenization.writers import gguf_metadata

_ALIGNMENT = 32


def write_gguf_model(
    path: StrPath, config: Mapping[str, Any], tensors: Tensors, tokenizer: BaseTokenizer, *, quantization: str
) -> None:
    """Writes a model with its tokenizer as one GGUF file that llama.cpp runs.

    Norms, biases and routers stay in float32. The output projection (or the tied embeddings) is in Q8_0 with `q4_0`, in
    Q6_K with `q4_k`. Columns that are no multiple of 256 turn Q4_K into Q5_0 and Q6_K into Q8_0, as in llama.cpp; those
    that are no multiple of 32 are in F16.

    Args:
        path: Path of the file; an existing file is replaced once the new one is complete.
        config: Values of Hugging Face's `config.json`, of any family in `names.FAMILIES`.
        tensors: Tensors by Hugging Face's names and in Hugging Face's shapes, of any floating dtype and device, or as
            rows that are encoded already. A tensor is looked up for its shape and again for writing, once for each of
            its parts in the file: a mapping may load one at a time.
        tokenizer: Byte-level BPE tokenizer.
        quantization: Name in `QUANTIZATIONS`.

    Raises:
        CheckpointError: A GGUF file can't contain the model; every obstacle, missing and unexpected tensor is listed.
        FileError: The file can't be written.
        InvalidArgumentError: An unknown quantization.
        TokenizerError: A GGUF file can't contain the tokenizer.
    """
    path, problems = Path(path), list[str]()
    metadata, values = model_metadata(path, config, tokenizer, quantization=quantization), complete(config)
    plan = Plan(values, tensors, quantization)
    _raise(path, plan.problems)
    planned = plan.planned
    own = rope_tensors(values)
    planned += [Planned(name, (name,), tuple(tensor.shape), TYPES["F32"]) for name, tensor in own.items()]
    with replaced_file(path) as file:
        _write_head(file, metadata, planned)
        for tensor in planned:
            _write_tensor(file, tensor, own if tensor.name in own else tensors, problems)
        _raise(path, problems)


def model_metadata(
    path: Path, config: Mapping[str, Any], tokenizer: BaseTokenizer, *, quantization: str
) -> dict[str, Any]:
    """Returns the metadata of the file that `write_gguf_model` writes from the same arguments.

    Raises:
        CheckpointError: A GGUF file can't contain the model; every obstacle in its config is listed.
        InvalidArgumentError: An unknown quantization.
        TokenizerError: A GGUF file can't contain the tokenizer.
    """
    if quantization not in QUANTIZATIONS:
        raise InvalidArgumentError(f"`quantization` must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}")
    problems = list[str]()
    family_of(config)
    values = complete(config)
    metadata = _metadata(path, values, quantization, problems)
    _raise(path, problems)
    return metadata | _tokenizer_metadata(path, tokenizer, values["vocab_size"])


def _raise(path: Path, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(f"{path}: a GGUF file can't hold this model:\n  " + "\n  ".join(problems))


def _metadata(path: Path, config: Mapping[str, Any], quantization: str, problems: list[str]) -> dict[str, Any]:
    return {
        "general.architecture": family_of(config).architecture,
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": QUANTIZATIONS[quantization][1],
        "general.quantization_version": 2,
        **hyper_parameters(config, problems),
    }


def _tokenizer_metadata(path: Path, tokenizer: BaseTokenizer, vocab_size: int) -> dict[str, Any]:
    if not isinstance(tokenizer, BPETokenizer):
        raise TokenizerError(f"a GGUF file stores only byte-level BPE, got a {type(tokenizer).__name__}")
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(f"the tokenizer has {tokenizer.vocab_size} ids, the model {vocab_size}: they must fit it")
    return gguf_metadata(tokenizer, path, vocab_size)


def _write_head(file: IO[bytes], metadata: Mapping[str, Any], planned: Sequence[Planned]) -> None:
    entries, offset = [], 0
    for tensor in planned:
        entries.append(TensorEntry(tensor.name, tensor.shape, tensor.kind.type_id, offset))
        offset += -(-tensor.num_bytes // _ALIGNMENT) * _ALIGNMENT
    head = metadata_bytes(metadata, entries)
    file.write(head + bytes(-len(head) % _ALIGNMENT))


def _write_tensor(file: IO[bytes], tensor: Planned, tensors: Tensors, problems: list[str]) -> None:
    for source in tensor.sources:
        found = tensors[source]
        if isinstance(found, EncodedRows):
            file.write(_ordered(found.rows, tensor))
            continue
        values = found.detach().cpu()
        values = values if tensor.part is None else tensor.part(values)
        limit = torch.finfo(tensor.kind.dtype if tensor.kind.block_values == 1 else torch.float16).max
        largest = float(values.abs().max())
        if not largest <= limit:
            problems.append(
                f"{source} must be finite and at most {limit:.6g} in {tensor.kind.name}, got {largest:.6g}"
                + ("" if limit > 1e6 else "\n  hint: `bf16` and `f32` hold larger values")
            )
            continue  # The loop goes on only to find more problems: the file won't be kept.
        file.write(write_values(_laid_out(values, tensor), tensor.kind))
    file.write(bytes(-tensor.num_bytes % _ALIGNMENT))


def _ordered(rows: Tensor, tensor: Planned) -> Any:
    """Returns the bytes of rows in the file's order; rows of a transposed layout are those of the file already."""
    rows = pair_rows(rows, tensor.num_heads) if tensor.layout is Layout.PAIRED_ROWS else rows
    return rows.contiguous().numpy()


def _laid_out(values: Tensor, tensor: Planned) -> Tensor:
    if tensor.layout is Layout.PAIRED_ROWS:
        return pair_rows(values, tensor.num_heads)
    if tensor.layout is Layout.TRANSPOSED:
        return values.t()
    if tensor.layout is Layout.PLUS_ONE:
        return values.float() + 1
    return values[0] if tensor.layout is Layout.FLAT else values
