"""Low-rank adapters on disk, in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.checkpoint.weights import load_tensors, read_json, save_tensors, sharded_as
from llm.errors import CheckpointError
from llm.models import DecoderModel
from llm.models.adapters import adapters_of, check_fit, projections_of
from llm.models.families import family_named
from llm.models.hf import known_names
from llm.models.layers.lora import Factors
from llm.models.tensor_files import INDEX, SINGLE, OnDisk
from llm.settings.run import LoraConfig, scale_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Not among the weights' metadata, which safetensors writes in any order: equal runs write equal files.
DIGESTS = "base_digests.json"
_PREFIX = "base_model.model."
_LEAVES = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
# Numbers of a tensor that its digest covers; whatever changes weights changes the first ones.
_DIGESTED = 16_384
_PLAIN = ("F32", "F16", "BF16")
# Keys of PEFT's config whose other values change what an adapter computes.
_USUAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "use_bdlora": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk.

    Attributes:
        path: Its directory.
        base: Path or name of the model that it belongs to; empty if it names none.
        factors: Values by Hugging Face's names of the projections, with rows as on disk.
        digests: Digests of the base's weights by their names; empty if the adapter has none.
    """

    path: Path
    base: str
    factors: Mapping[str, Factors]
    digests: Mapping[str, str]


def is_adapter(directory: Path) -> bool:
    """Returns whether a directory holds an adapter and no whole model."""
    has_model = any((directory / name).is_file() for name in (SINGLE, INDEX))
    return (directory / CONFIG).is_file() and not has_model


def base_path(directory: Path) -> str:
    """Returns the path or name of an adapter's base; empty if it names none."""
    return str(read_json(directory / CONFIG).get("base_model_name_or_path") or "")


def read_adapter(directory: Path) -> Adapter:
    """Reads an adapter that this package or PEFT wrote.

    Raises:
        CheckpointError: Files are missing or damaged, or the adapter has parts that this package does not support.
    """
    values = read_json(directory / CONFIG)
    for key, usual in _USUAL.items():
        if values.get(key, usual[0]) not in usual:
            raise CheckpointError(
                f"{directory / CONFIG} asks for a kind of adapter that is not supported: `{key}` must be "
                f"{' or '.join(map(repr, usual))}, got {values[key]!r}\n"
                "hint: merge it with `merge_and_unload()` of peft"
            )
    tensors = load_tensors(directory / WEIGHTS)
    digests = read_json(directory / DIGESTS) if (directory / DIGESTS).is_file() else {}
    return Adapter(directory, base_path(directory), dict(_factors(directory, values, tensors)), digests)


def _factors(directory: Path, values: Mapping[str, Any], tensors: dict[str, Tensor]) -> Iterator[tuple[str, Factors]]:
    names = dict.fromkeys(_module_of(name, directory) for name in tensors)
    if not names:
        raise CheckpointError(f"{directory / WEIGHTS} holds no adapter")
    for name in names:
        first, second, magnitude = (tensors.get(f"{_PREFIX}{name}.{leaf}") for leaf in _LEAVES)
        if first is None or second is None:
            missing = _LEAVES[0] if first is None else _LEAVES[1]
            raise CheckpointError(f"{directory / WEIGHTS} lacks {_PREFIX}{name}.{missing}")
        for leaf, tensor in zip(_LEAVES, (first, second, magnitude), strict=True):
            if tensor is not None:
                _check_numbers(f"{_PREFIX}{name}.{leaf}", tensor)
        alpha = _of_pattern(values.get("alpha_pattern"), name, values.get("lora_alpha", 8))
        if not isinstance(alpha, int | float):
            raise CheckpointError(f"{directory / CONFIG}: the alpha of {name} must be a number, got {alpha!r}")
        scale = scale_of(len(first), float(alpha), use_rslora=bool(values.get("use_rslora")))
        factors = Factors(first, second, scale, magnitude)
        _check_kind(directory / CONFIG, values, name, factors)
        yield name, factors


def _check_numbers(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise CheckpointError(f"weights of an adapter must be floating-point numbers, got {tensor.dtype} in {name}")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"weights must be finite, got NaN or infinity in {name}")


def _check_kind(file: Path, values: Mapping[str, Any], name: str, factors: Factors) -> None:
    """Checks the rank and the kind that an adapter's config names against a projection's weights."""
    rank = len(factors.lora_a)
    named = _of_pattern(values.get("rank_pattern"), name, values.get("r", rank))
    if named != rank:
        raise CheckpointError(f"{file}: the rank of {name} must be {rank}, as in its weights, got {named!r}")
    has_magnitude = factors.magnitude is not None
    if bool(values.get("use_dora")) != has_magnitude:
        has = "has" if has_magnitude else "lacks"
        raise CheckpointError(f"{file}: `use_dora` must be {has_magnitude}, since {name} {has} magnitudes")


def _module_of(name: str, directory: Path) -> str:
    for leaf in _LEAVES:
        if name.startswith(_PREFIX) and name.endswith(f".{leaf}"):
            return name.removeprefix(_PREFIX).removesuffix(f".{leaf}")
    raise CheckpointError(
        f"{directory / WEIGHTS} holds {name}, which is no low-rank adapter of a linear layer\n"
        "hint: merge the adapter with `merge_and_unload()` of peft"
    )


def _of_pattern(patterns: Mapping[str, Any] | None, name: str, usual: Any) -> Any:
    """Returns the value of the first pattern that matches the end of a name, as PEFT does."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return usual


def adapter_entries(model: DecoderModel) -> dict[str, Tensor]:
    """Returns the trained weights of a model's adapters by their names in the model."""
    return {
        f"{path}.{leaf}": tensor.detach()
        for _, path, adapter in adapters_of(model)
        for leaf, tensor in adapter.named_parameters(recurse=False)
    }


def write_adapter_weights(file: Path, model: DecoderModel, state: Mapping[str, Tensor]) -> None:
    """Writes `adapter_model.safetensors`.

    Args:
        file: The file.
        model: The adapted model.
        state: What `adapter_entries` returns, whole.
    """
    found: dict[str, Tensor] = {}
    for part, path, _ in adapters_of(model):
        first, second, magnitude = (f"{_PREFIX}{part.name}.{leaf}" for leaf in _LEAVES)
        found[first] = state[f"{path}.lora_a"]
        found[second] = part.to_disk(state[f"{path}.lora_b"])
        if f"{path}.magnitude" in state:
            found[magnitude] = part.to_disk(state[f"{path}.magnitude"])
    save_tensors(file, found)


def write_adapter_config(directory: Path, model: DecoderModel, settings: LoraConfig, base: str) -> None:
    """Writes `adapter_config.json`; `base` is the path of the model that the adapter belongs to."""
    rank = settings.rank or 1
    parts = [part for part, _, _ in adapters_of(model)]
    alpha = settings.scale * (math.sqrt(rank) if settings.use_rslora else rank)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": settings.input_dropout,
        "target_modules": _target_names(model, [part.name for part in parts]),
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
        "fan_in_fan_out": any(part.is_transposed for part in parts),
        "bias": "none",
        "inference_mode": True,
    }
    (directory / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _target_names(model: DecoderModel, adapted: list[str]) -> list[str]:
    """Returns the last parts of the names of projections, or whole names where others end alike."""
    others = {name.rpartition(".")[2] for name in projections_of(model) if name not in set(adapted)}
    return sorted({key if (key := name.rpartition(".")[2]) not in others else name for name in adapted})


@torch.no_grad()
def fill_adapters(model: DecoderModel, adapter: Adapter) -> None:
    """Copies an adapter into a model with adapters of the same projections and ranks; sharded ones get their shards.

    Raises:
        CheckpointError: The adapter has other projections, ranks or kinds.
    """
    check_fit(model, projections_of(model), adapter.factors)
    own = {part.name: (part, module) for part, _, module in adapters_of(model)}
    if own.keys() != adapter.factors.keys():
        differing = sorted(own.keys() ^ adapter.factors.keys())
        raise CheckpointError(f"{adapter.path} must adapt what the run adapts, but differs in {', '.join(differing)}")
    for name, (part, module) in own.items():
        factors = adapter.factors[name]
        if factors.lora_a.shape != module.lora_a.shape or (factors.magnitude is None) != (module.magnitude is None):
            raise CheckpointError(f"{adapter.path} must have the rank and kind of the run's adapters, unlike {name}")
        _fill(module.lora_a, factors.lora_a)
        _fill(module.lora_b, part.from_disk(factors.lora_b))
        if module.magnitude is not None and factors.magnitude is not None:
            _fill(module.magnitude, part.from_disk(factors.magnitude))


def _fill(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(sharded_as(values, parameter))


def base_digests(values: Mapping[str, Any], tensors: Mapping[str, OnDisk], names: Iterator[str]) -> dict[str, str]:
    """Returns digests of the weights of projections, which tell one base from another.

    A digest covers the number type, the shape and the first numbers of a tensor. Quantised weights have none.

    Args:
        values: The base's `config.json`.
        tensors: The base's tensors on disk.
        names: Names of projections.
    """
    found = {}
    named = known_names(tensors, family_named(values))
    for name in names:
        tensor = named.get(f"{name}.weight")
        if tensor is not None and tensor.type_name in _PLAIN:
            first = tensor.load().flatten()[:_DIGESTED].contiguous().view(torch.uint8)
            digest = hashlib.sha256(f"{tensor.type_name} {list(tensor.shape)}".encode() + first.numpy().tobytes())
            found[name] = f"{tensor.type_name}:{digest.hexdigest()[:16]}"
    return found


def adapter_digest(directory: Path) -> dict[str, str]:
    """Returns the digest of an adapter that is the base of another one, under the name of its file of weights."""
    return {WEIGHTS: hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()[:16]}


def check_adapter_base(adapter: Adapter, base: Path) -> None:
    """Checks an adapter that is to be put on another one at `base`.

    Raises:
        CheckpointError: It was trained on whole weights, or on an adapter with other weights than those at `base` now.
    """
    if adapter.digests and adapter.digests != adapter_digest(base):
        on = "other weights than those of" if WEIGHTS in adapter.digests else "whole weights, not on"
        raise CheckpointError(
            f"the adapter {adapter.path} was trained on {on} the adapter {base}\n"
            f"hint: it was trained on {adapter.base}; `llm merge` makes whole weights of an adapter"
        )


def check_base(adapter: Adapter, values: Mapping[str, Any], tensors: Mapping[str, OnDisk], base: str) -> None:
    """Checks the digests that an adapter has against a base; weights of another number type are not compared.

    Raises:
        CheckpointError: The base's weights are not those that the adapter was trained on.
    """
    if WEIGHTS in adapter.digests:
        raise CheckpointError(
            f"the adapter {adapter.path} was trained on another adapter, got the whole weights of {base}\n"
            f"hint: it was trained on {adapter.base}"
        )
    for name, digest in base_digests(values, tensors, iter(adapter.digests)).items():
        trained_on = adapter.digests[name]
        if digest != trained_on and digest.partition(":")[0] == trained_on.partition(":")[0]:
            is_same_place = Path(base).absolute() == Path(adapter.base).absolute()
            way_out = "the weights there have changed since" if is_same_place else f"it was trained on {adapter.base}"
            raise CheckpointError(
                f"the adapter {adapter.path} was trained on other weights than those of {base}: "
                f"{name}.weight has the digest {digest}, the adapter's base had {trained_on}\n"
                f"hint: {way_out}"
            )
