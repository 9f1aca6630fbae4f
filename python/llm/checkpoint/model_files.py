"""Writes a model as a checkpoint's files; several processes can write a share of the weights each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from llm.checkpoint.weights import CUSTOM, save_tensors
from llm.models import DecoderModel, RegressionModel
from llm.models.families import Piece, family_of
from llm.models.hf import TIED
from llm.models.reward import RewardModel, classifier_of
from llm.models.tensor_files import INDEX, SINGLE
from llm.settings.run import GenerationConfig
from llm.tokenization import BaseTokenizer

MAX_FILE_BYTES = 5 * 10**9


@dataclass(frozen=True)
class WeightFile:
    """A file of weights, and the entries of the model's state that it holds, as tensors without memory.

    Whoever writes while the model trains takes names, shapes and types from here: to be asked for its state, a sharded
    model drops the blocks that are gathered for a pass.
    """

    name: str
    entries: Mapping[str, Tensor]


def saved_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns the model's state without a tied output projection, which files omit."""
    state: dict[str, Tensor] = model.state_dict()
    if isinstance(model, DecoderModel) and model.config.tie_word_embeddings:
        state.pop(TIED, None)
    return state


def plan_files(model: nn.Module, *, num_writers: int = 1, max_bytes: int = MAX_FILE_BYTES) -> list[WeightFile]:
    """Divides the model's state among files, in order; depends on names and shapes only.

    Args:
        model: The model; sharded parameters count whole.
        num_writers: Number of processes that write; each gets a file if there are enough entries.
        max_bytes: Size of a file, unless a single entry is larger.
    """
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in saved_state(model).items()
    }
    sizes = {name: tensor.nbytes for name, tensor in state.items()}
    limit = min(max_bytes, -(-sum(sizes.values()) // num_writers))
    files = _cut(sizes, limit)
    while len(files) > num_writers and limit < max_bytes:  # as many files as writers, of similar size
        limit = min(max_bytes, limit + -(-limit // 16))
        files = _cut(sizes, limit)
    if len(files) == 1:
        return [WeightFile(SINGLE, state)]
    return [
        WeightFile(f"model-{number:05d}-of-{len(files):05d}.safetensors", {name: state[name] for name in entries})
        for number, entries in enumerate(files, start=1)
    ]


def _cut(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Fills groups with entries in order, up to `limit` bytes each, or one entry."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def write_weights(directory: Path, model: nn.Module, file: WeightFile, state: Mapping[str, Tensor]) -> None:
    """Writes one file of weights under the names of the model's family; `state` holds the file's entries, whole."""
    pieces = [piece for name in file.entries for piece in _pieces(model, name, state[name])]
    save_tensors(directory / file.name, {piece.name: piece.extract() for piece in pieces})


def write_description(
    directory: Path,
    model: nn.Module,
    files: Sequence[WeightFile],
    tokenizer: BaseTokenizer | None,
    generation: GenerationConfig | None = None,
) -> None:
    """Writes everything but the weights: config, tokenizer, and the index of several files of weights."""
    values = _config_values(model)
    values["dtype"] = str(_first_parameter(model, files).dtype).removeprefix("torch.")
    if tokenizer is not None:
        values |= write_tokenizer(directory, tokenizer, generation)
    if len(files) > 1:
        _write_json(directory / INDEX, _index(model, files))
    _write_json(directory / "config.json", values)


def write_tokenizer(
    directory: Path, tokenizer: BaseTokenizer, generation: GenerationConfig | None = None
) -> dict[str, Any]:
    """Writes the tokenizer and the sampling values, and returns the ids of special tokens by their names."""
    ids = _special_ids(tokenizer)
    _write_json(directory / "generation_config.json", ids | _generation_values(generation))
    tokenizer.save(directory)
    return ids


def write_model(
    directory: Path,
    model: nn.Module,
    tokenizer: BaseTokenizer | None,
    generation: GenerationConfig | None = None,
    *,
    max_shard_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes weights, config and tokenizer into `directory` (use `atomic_directory` around it).

    Args:
        directory: Exists already.
        model: A `DecoderModel`, a `RegressionModel`, or a module of your own, whose state is saved as it is. Weights
            keep their dtype.
        tokenizer: Saved beside a decoder, so that what was trained is what is served.
        generation: Sampling values for requests that name none.
        max_shard_bytes: Weights that are larger go into several files, with an index beside them.
    """
    files, state = plan_files(model, max_bytes=max_shard_bytes), saved_state(model)
    for file in files:
        write_weights(directory, model, file, state)
    write_description(directory, model, files, tokenizer, generation)


def _pieces(model: nn.Module, name: str, tensor: Tensor) -> list[Piece]:
    if isinstance(model, DecoderModel):
        return family_of(model.config).pieces(name, tensor, model.config)
    return [Piece(name, tensor)]


def _config_values(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, DecoderModel):
        named = family_of(model.config).config_to(model.config)
        return named | _classifier_values(named) if isinstance(model, RewardModel) else named
    values: dict[str, Any] = {"model_type": CUSTOM}
    if isinstance(model, RegressionModel):
        values = {"model_type": "llm_oxide", **msgspec.to_builtins(model.config)}
    return values | {"architectures": [_class_name(model)]}


def _classifier_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what transformers needs to open a model with a head of one number."""
    [architecture] = values["architectures"]
    return {
        "architectures": [classifier_of(architecture)],
        "num_labels": 1,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }


def _class_name(model: nn.Module) -> str:
    """Returns the name of the model's class; PyTorch makes a subclass `FSDP…` of a sharded model's."""
    return next(kind.__name__ for kind in type(model).__mro__ if not kind.__name__.startswith("FSDP"))


def _first_parameter(model: nn.Module, files: Sequence[WeightFile]) -> Tensor:
    """Returns the first parameter as the files hold it; in a pass, a sharded model has it in another type."""
    entries = {name: tensor for file in files for name, tensor in file.entries.items()}
    return next(entries[name] for name, _ in model.named_parameters() if name in entries)


def _index(model: nn.Module, files: Sequence[WeightFile]) -> dict[str, Any]:
    places: dict[str, str] = {}
    total = 0
    for file in files:
        for name, empty in file.entries.items():
            pieces = _pieces(model, name, empty)
            places |= {piece.name: file.name for piece in pieces}
            total += sum(piece.view.nbytes for piece in pieces)
    return {"metadata": {"total_size": total}, "weight_map": places}


def _generation_values(generation: GenerationConfig | None) -> dict[str, Any]:
    given = msgspec.to_builtins(generation) if generation else {}
    return {"do_sample": True, **{key: value for key, value in given.items() if value is not None}}


def _special_ids(tokenizer: BaseTokenizer) -> dict[str, Any]:
    eos = list(tokenizer.eos_ids)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": eos if len(eos) > 1 else next(iter(eos), None),
        "pad_token_id": tokenizer.pad_id,
    }


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
