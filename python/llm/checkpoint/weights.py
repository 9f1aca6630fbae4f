"""Reads weights and config of a checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm.errors import CheckpointError
from llm.models import DecoderModel, RegressionModel
from llm.models.families import family_named
from llm.models.hf import agreed, check_shapes, empty_model, fill_model, own_dtype, read_parameters
from llm.models.packing import pack_matrices
from llm.models.reward import kind_of_model
from llm.models.tensor_files import OnDisk
from llm.models.tensor_parallel import Shard, Source, empty_shard, fill_shard
from llm.settings.merge import from_builtins
from llm.settings.model import ModelConfig
from llm.tokenization.files import raise_if_stand_in

CUSTOM = "custom"  # `model_type` of a user's own module
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_model(
    values: Mapping[str, Any],
    tensors: Mapping[str, OnDisk],
    dtype: torch.dtype,
    device: torch.device,
    *,
    keep_packed: bool = False,
    settings: ModelConfig | None = None,
) -> DecoderModel | RegressionModel:
    """Builds the model that the `values` of a `config.json` describe from `tensors` on disk, in eval mode.

    With `keep_packed`, quantised matrices stay packed where `pack_matrices` can keep them so. With `settings`, those of
    a decoder that its weights don't depend on, such as dropout, are these.

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
    model = empty_model(settings or config, kind_of_model(values))
    check_shapes(named, model.state_dict(), config, family)
    if keep_packed:
        pack_matrices(model, family, named, dtype, device)
    fill_model(model, family, named, dtype=dtype, device=device)
    return model.eval()


def build_shard(
    values: Mapping[str, Any], tensors: Mapping[str, OnDisk], dtype: torch.dtype, device: torch.device, shard: Shard
) -> DecoderModel:
    """Builds a rank's part of the model that the `values` of a `config.json` describe, in eval mode.

    Raises:
        CheckpointError: Contradictory values or tensors, or an unknown architecture.
    """
    family = family_named(values)
    config, named = agreed(family.config_from(values), tensors, family)
    whole = empty_model(config)
    check_shapes(named, whole.state_dict(), config, family)
    model = empty_shard(config, shard)
    fill_shard(model, Source(whole, family, named), shard, dtype=dtype, device=device)
    return model


def fill_decoder(model: DecoderModel, values: Mapping[str, Any], tensors: Mapping[str, OnDisk]) -> None:
    """Copies the weights that the `values` of a `config.json` describe into a model, one parameter after the other.

    Raises:
        CheckpointError: The tensors are another model's.
    """
    family = family_named(values)
    config, named = agreed(family.config_from(values), tensors, family)
    if config.tie_word_embeddings != model.config.tie_word_embeddings:
        raise CheckpointError(
            f"`model.tie_word_embeddings` must be {config.tie_word_embeddings} for these weights, "
            f"got {model.config.tie_word_embeddings}"
        )
    check_shapes(named, model.state_dict(), config, family)
    parameters, dtype = dict(model.named_parameters()), dtype_of(values, tensors)
    for name, tensor in read_parameters(model, family, named, dtype=dtype, device=torch.device("cpu")):
        parameters[name].detach().copy_(sharded_as(tensor, parameters[name]))


def fill_plain_module(module: nn.Module, tensors: Mapping[str, OnDisk]) -> None:
    """Copies tensors into a module whose state has the same names.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshaped; every one is listed.
    """
    state = module.state_dict()
    try:
        module.load_state_dict({name: sharded_as(tensor.load(), state.get(name)) for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"weights and {type(module).__name__} disagree: {error}") from None


def sharded_as(whole: Tensor, target: Tensor | None) -> Tensor:
    """Returns this process's shard of `whole` if `target` is sharded over processes, and `whole` itself otherwise."""
    mesh = getattr(target, "device_mesh", None)
    if mesh is None:
        return whole
    # This module takes a second to import, which runs without shards save.
    from torch.distributed.tensor import distribute_tensor

    # Each process has the whole tensor and keeps its shard, so nothing is sent.
    return distribute_tensor(whole, mesh, cast(Any, target).placements, src_data_rank=None)


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


def dtype_of(values: Mapping[str, Any], tensors: Mapping[str, OnDisk], name: str = "auto") -> torch.dtype:
    """Returns the dtype that `name` asks for, that `config.json` names, or that the weights have.

    Raises:
        CheckpointError: An unknown dtype; the valid ones are listed.
    """
    wanted = own_dtype(values, tensors) if name == "auto" else name
    if name == "auto" and wanted not in DTYPES:
        raise CheckpointError(
            f"config.json says that the weights are {wanted!r}, which must be one of {', '.join(DTYPES)}\n"
            "hint: `dtype` names another one"
        )
    if wanted not in DTYPES:
        raise CheckpointError(f"`dtype` must be one of auto, {', '.join(DTYPES)}, got {wanted!r}")
    return DTYPES[wanted]
