"""Reads weights and config of a GGUF file under Hugging Face's names and in Hugging Face's shapes."""

import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from llm.errors import CheckpointError
from llm.models.gguf.config import HyperParameters, num_experts, values_of
from llm.models.gguf.derived import values_from_tensors
from llm.models.gguf.lazy import JoinedTensor, LazyTensor
from llm.models.gguf.names import (
    ROPE_FREQS,
    ROPE_LONG,
    ROPE_SHORT,
    Family,
    Layout,
    family_of,
    is_stacked,
    to_hugging_face,
)
from llm.models.gguf.rope import llama3_scaling, longrope_scaling
from llm.models.gguf.types import TYPES, TYPES_BY_ID, Bytes, name_of_type, read_values
from llm.tokenization.files import StrPath
from llm.tokenization.readers.gguf_file import Head, TensorEntry, read_head

GGUFTensor: TypeAlias = LazyTensor | JoinedTensor
_Stored: TypeAlias = tuple[TensorEntry, Bytes]
_DEFAULT_ALIGNMENT = 32
_MAX_PROBLEMS = 20


class GGUFModel:
    """A GGUF file after its one complete check.

    Attributes:
        config: Values of Hugging Face's `config.json`.
        tensors: Tensors by Hugging Face's names, one per expert; a tensor without such a name keeps the file's.
    """

    def __init__(self, path: StrPath) -> None:
        head = read_head(Path(path), _is_wanted, CheckpointError)
        hyper = HyperParameters(head.metadata)
        _raise(path, hyper.problems)
        values = values_of(hyper)
        contents = _contents(head, hyper.problems)
        _raise(path, hyper.problems)
        self.config = values | values_from_tensors(values, head.tensors, hyper)
        _raise(path, hyper.problems)
        factors = contents.pop(ROPE_FREQS, None)
        if factors is not None:
            _add_factors(self.config, factors, hyper.problems)
        long, short = contents.pop(ROPE_LONG, None), contents.pop(ROPE_SHORT, None)
        if long is not None and short is not None:
            _add_longrope(self.config, long, short, hyper)
            _raise(path, hyper.problems)
        self.tensors = _named(contents, self.config, hyper.problems)
        _raise(path, hyper.problems)


def read_config(path: StrPath) -> dict[str, Any]:
    """Returns the values of Hugging Face's `config.json` for the model in a GGUF file.

    `dtype` is the type of most values, `float32` if they are quantised. Rotary scaling is under `rope_scaling`. GPT-2
    has its own keys (`n_embd` …). A file of the architecture `llama` is a `mixtral` if it has experts, a `mistral` if
    it has a sliding window, else a `llama`.

    Raises:
        FileError: The file can't be read.
        CheckpointError: As for `read_tensors`.
    """
    return GGUFModel(path).config


def read_tensors(path: StrPath) -> Mapping[str, GGUFTensor]:
    """Opens the weights of a GGUF file under Hugging Face's names; none is loaded yet.

    Each expert has a tensor of its own where Hugging Face has one. A tensor that is unknown in the family keeps its
    name in the file. The caller checks that all tensors of the model are there, in the right shapes.

    Raises:
        FileError: The file can't be read.
        CheckpointError: No GGUF file, torn, of an architecture or with types of values that are not supported, or
            hyper-parameters are missing or contradict the tensors; every problem is listed.
    """
    return GGUFModel(path).tensors


def _is_wanted(key: str) -> bool:
    """Whether a model needs `key`; the vocabulary, which is most of the metadata, is skipped."""
    return not key.startswith("tokenizer.") or key.endswith("_token_id")


def _raise(path: StrPath, problems: list[str]) -> None:
    if not problems:
        return
    shown = problems[:_MAX_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    raise CheckpointError(f"{path}: can't be used as a model:\n  " + "\n  ".join(shown))


def _contents(head: Head, problems: list[str]) -> dict[str, _Stored]:
    """Returns entry and bytes of each tensor by its name in the file."""
    alignment = head.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
        problems.append(f"`general.alignment` must be a multiple of 8, got {str(alignment)[:60]}")
        return {}
    start = -(-head.num_bytes // alignment) * alignment
    found: dict[str, _Stored] = {}
    for entry in head.tensors:
        if entry.name in found:
            problems.append(f"tensor {entry.name} is there twice")
            continue
        problem = _problem(entry, alignment, len(head.content) - start)
        if problem is None:
            found[entry.name] = entry, _bytes_of(head.content, start, entry)
        else:
            problems.append(f"tensor {entry.name} {problem}")
    problems += _overlaps(entry for entry, _ in found.values())
    return found


def _overlaps(entries: Iterable[TensorEntry]) -> Iterator[str]:
    """Yields an error for each tensor that begins before another one ends, so that a file is as large as its model."""
    at_end: TensorEntry | None = None
    for entry in sorted(entries, key=lambda each: each.offset):
        if at_end is not None and entry.offset < _end(at_end):
            yield f"tensor {entry.name} begins at offset {entry.offset}, within tensor {at_end.name}"
        at_end = entry if at_end is None or _end(entry) > _end(at_end) else at_end


def _end(entry: TensorEntry) -> int:
    """Returns the offset of the first byte after a tensor of a known type."""
    return entry.offset + TYPES_BY_ID[entry.type_id].num_bytes(entry.num_values)


def _problem(entry: TensorEntry, alignment: int, num_bytes: int) -> str | None:
    """Returns the error of a row of the table for `num_bytes` of content, or None."""
    kind = TYPES_BY_ID.get(entry.type_id)
    if kind is None:
        return f"has values of type {name_of_type(entry.type_id)}, supported are {', '.join(TYPES)}"
    if not entry.shape or 0 in entry.shape:
        return f"has no values: its shape is {list(entry.shape)}"
    if entry.shape[-1] % kind.block_values:
        return f"has rows of {entry.shape[-1]} values, which are no whole blocks of {kind.block_values} ({kind.name})"
    if entry.offset % alignment:
        return f"begins at offset {entry.offset}, which is no multiple of {alignment}"
    end = _end(entry)
    if end > num_bytes:
        return f"ends at byte {end} of the content, of which {num_bytes} are there: the file is torn"
    return None


def _bytes_of(content: mmap.mmap, start: int, entry: TensorEntry) -> Bytes:
    num_bytes = TYPES_BY_ID[entry.type_id].num_bytes(entry.num_values)
    return np.frombuffer(content, np.uint8, num_bytes, start + entry.offset)


def _add_factors(config: dict[str, Any], stored: _Stored, problems: list[str]) -> None:
    """Adds the rotary scaling that gives these frequency factors to `config`."""
    entry, content = stored
    factors = read_values(content, TYPES_BY_ID[entry.type_id], torch.float32)
    if bool((factors == 1).all()):
        return
    scaling = llama3_scaling(factors, config.get("rope_theta", 0.0), config.get("head_dim", 0))
    if scaling is None or "rope_scaling" in config:
        problems.append(
            f"tensor {ROPE_FREQS} must hold factors that Llama 3's scaling gives, and be the only scaling, "
            f"got {[round(float(factor), 4) for factor in factors[:8]]} …"
        )
    else:
        config["rope_scaling"] = scaling


def _add_longrope(config: dict[str, Any], long: _Stored, short: _Stored, hyper: HyperParameters) -> None:
    """Adds a scaling with one divisor of each frequency, for short and for long contexts, to `config`."""
    if config["model_type"] != "phi3":
        hyper.problems.append(f"tensors {ROPE_LONG} and {ROPE_SHORT} are supported for phi3 only")
        return
    context = config["max_position_embeddings"]
    original = hyper.number("rope.scaling.original_context_length", int, context)
    factor = hyper.number("rope.scaling.attn_factor", float, 1.0)
    if hyper.problems:
        return
    on_short, on_long = (
        read_values(content, TYPES_BY_ID[entry.type_id], torch.float32) for entry, content in (short, long)
    )
    config["rope_scaling"] = longrope_scaling(on_short, on_long, original, context, factor)
    config["original_max_position_embeddings"] = original


def _named(contents: Mapping[str, _Stored], config: Mapping[str, Any], problems: list[str]) -> dict[str, GGUFTensor]:
    """Returns the tensors by Hugging Face's names, one per expert."""
    family = family_of(config)
    found: dict[str, GGUFTensor] = _joined(contents, family, config, problems)
    for name, (entry, content) in contents.items():
        if family.join_of(name) is not None:
            continue
        layout, stacked = family.layout(name), is_stacked(name, family)
        heads = (
            int(config["num_key_value_heads" if "attn_k" in name else "num_attention_heads"])
            if (layout is Layout.PAIRED_ROWS)
            else 0
        )
        problem = _layout_problem(entry, layout, heads, num_experts(config) if stacked else 0)
        if problem is not None:
            problems.append(f"tensor {name} {problem}")
            continue
        names = to_hugging_face(name, family, entry.shape[0]) or [name]
        for part, hf_name in zip(np.split(content, len(names)), names, strict=True):
            shape = entry.shape[1:] if stacked else entry.shape
            found[hf_name] = LazyTensor(part, entry._replace(shape=shape), layout, heads)
    return found


def _joined(
    contents: Mapping[str, _Stored], family: Family, config: Mapping[str, Any], problems: list[str]
) -> dict[str, GGUFTensor]:
    """Returns the tensors that the file has in parts."""
    places = [place for name in contents if (place := family.join_of(name)) is not None]
    found: dict[str, GGUFTensor] = {}
    for place in {place.whole: place for place in places}.values():
        missing = [part for part in place.names if part not in contents]
        if missing:
            there = next(part for part in place.names if part in contents)
            problems.append(f"tensor {there} must have {', '.join(missing)} beside it")
            continue
        join, parts = place.join, [contents[part] for part in place.names]
        wanted = [join.part_shape(idx, config) for idx in range(len(parts))]
        wrong = [
            f"tensor {entry.name} must have the shape {list(shape)}, got {list(entry.shape)}"
            for shape, (entry, _) in zip(wanted, parts, strict=True)
            if shape != entry.shape
        ]
        problems += wrong
        if not wrong:
            lazy = [LazyTensor(content, entry, Layout.SAME, 0) for entry, content in parts]
            found[place.whole] = JoinedTensor(join, config, lazy)
    return found


def _layout_problem(entry: TensorEntry, layout: Layout, num_heads: int, experts: int) -> str | None:
    """Returns the reason why a tensor can't be laid out as Hugging Face's, or None."""
    shape = list(entry.shape)
    if experts and (len(shape) != 3 or shape[0] != experts):
        return f"must stack {experts} experts, got the shape {shape}"
    if layout is Layout.TRANSPOSED and len(shape) != 2:
        return f"must have 2 dimensions, got {shape}"
    if layout is Layout.PAIRED_ROWS and (
        shape[0] % (2 * num_heads) or (len(shape) == 1 and TYPES_BY_ID[entry.type_id].block_values > 1)
    ):
        return f"must have pairs of rows for {num_heads} heads, got the shape {shape}"
    return None
