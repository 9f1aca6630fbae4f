"""Weights, config and tokenizer of a checkpoint as files: one writer and one reader."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm.errors import CheckpointError
from llm.models import DecoderModel, RegressionModel
from llm.models.families import Piece, family_named, family_of
from llm.models.hf import agreed, check_shapes, empty_model, fill_model, own_dtype, weight_parts
from llm.models.tensor_files import INDEX, SINGLE, OnDisk
from llm.settings.merge import from_builtins
from llm.settings.model import ModelConfig
from llm.settings.run import GenerationConfig
from llm.tokenization import BaseTokenizer
from llm.tokenization.files import raise_if_stand_in

MAX_SHARD_BYTES = 5 * 10**9
CUSTOM = "custom"  # `model_type` of a user's own module
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write_model(
    directory: Path,
    model: nn.Module,
    tokenizer: BaseTokenizer | None,
    generation: GenerationConfig | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
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
    if isinstance(model, DecoderModel):
        family = family_of(model.config)
        values = family.config_to(model.config)
        parts = weight_parts(model.state_dict(), model.config, family)
        _save_shards(directory, parts, max_shard_bytes)
    else:
        is_own = not isinstance(model, RegressionModel)
        values = {"model_type": CUSTOM} if is_own else {"model_type": "llm_oxide", **msgspec.to_builtins(model.config)}
        values["architectures"] = [type(model).__name__]
        save_tensors(directory / SINGLE, model.state_dict())
    values["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    if tokenizer is not None:
        ids = _special_ids(tokenizer)
        values |= ids
        _write_json(directory / "generation_config.json", ids | _generation_values(generation))
        tokenizer.save(directory)
    _write_json(directory / "config.json", values)


def _save_shards(directory: Path, parts: Iterator[Piece], max_bytes: int) -> None:
    """Writes pieces in files of at most `max_bytes` (one tensor at least); no more than one file's are copied."""
    shards: list[list[Piece]] = [[]]
    size = total = 0
    for piece in parts:
        if shards[-1] and size + piece.view.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size, total = size + piece.view.nbytes, total + piece.view.nbytes
    if len(shards) == 1:
        save_tensors(directory / SINGLE, {piece.name: piece.extract() for piece in shards[0]})
        return
    places: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        save_tensors(directory / name, {piece.name: piece.extract() for piece in shard})
        places |= {piece.name: name for piece in shard}
    _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def build_model(
    values: Mapping[str, Any], tensors: Mapping[str, OnDisk], dtype: torch.dtype, device: torch.device
) -> DecoderModel | RegressionModel:
    """Builds the model that the `values` of a `config.json` describe from `tensors` on disk, in eval mode.

    Raises:
        CheckpointError: Contradictory values or tensors, or an unknown architecture.
    """
    if values.get("model_type") == CUSTOM:
        [name] = values.get("architectures") or ["module"]
        raise CheckpointError(
            f"the checkpoint holds a {name}, which only the task that trained it can build\n"
            "hint: build the module and fill it with `Checkpoint.load_weights(module)`"
        )
    if values.get("architectures") == ["RegressionModel"]:
        known = {field.name for field in msgspec.structs.fields(ModelConfig)}
        regressor = RegressionModel(from_builtins({key: values[key] for key in values if key in known}, ModelConfig))
        fill_plain_module(regressor, tensors)
        return regressor.to(device=device, dtype=dtype).eval()
    family = family_named(values)
    config, named = agreed(family.config_from(values), tensors, family)
    model = empty_model(config)
    check_shapes(named, model.state_dict(), config, family)
    fill_model(model, family, named, dtype=dtype, device=device)
    return model.eval()


def fill_plain_module(module: nn.Module, tensors: Mapping[str, OnDisk]) -> None:
    """Copies tensors into a module whose state has the same names.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshaped; every one is listed.
    """
    try:
        module.load_state_dict({name: tensor.load() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"weights and {type(module).__name__} disagree: {error}") from None


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as safetensors; those that share memory are copied apart."""
    file.touch()
    mode = file.stat().st_mode  # safetensors writes 0600; others may read what the umask lets them
    own: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        place = flat.untyped_storage().data_ptr()
        is_apart = place not in places and flat.untyped_storage().nbytes() == flat.nbytes
        own[name] = flat if is_apart else flat.clone()
        places.add(place)
    save_file(own, file, metadata={"format": "pt"})
    file.chmod(mode)


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        CheckpointError: Missing, truncated or not safetensors.
    """
    try:
        return load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing\nhint: copy the whole checkpoint directory") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is truncated or not a safetensors file ({file.stat().st_size} bytes): {error}\n"
            "hint: copy the checkpoint again, or use an older one of the run (`--from-step`)"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: Missing, or not a JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing\nhint: copy the whole checkpoint directory") from None
    except (ValueError, RecursionError) as error:
        raise_if_stand_in(file, CheckpointError)
        raise CheckpointError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got a {type(values).__name__}")
    return values


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


def dtype_of(values: Mapping[str, Any], tensors: Mapping[str, OnDisk], name: str = "auto") -> torch.dtype:
    """Returns the dtype that `name` asks for, that `config.json` names, or that the weights have.

    Raises:
        CheckpointError: An unknown dtype; the valid ones are listed.
    """
    wanted = own_dtype(values, tensors) if name == "auto" else name
    if wanted not in DTYPES:
        raise CheckpointError(f"`dtype` must be one of auto, {', '.join(DTYPES)}, got {wanted!r}")
    return DTYPES[wanted]


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
