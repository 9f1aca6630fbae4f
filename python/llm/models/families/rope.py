"""Reads and writes the rotary settings of a `config.json`."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from llm.errors import CheckpointError
from llm.settings.model import ModelConfig, RopeScaling

Values: TypeAlias = dict[str, Any]


def read_rope(values: Mapping[str, Any], partial: float | None = None) -> Values:
    """Reads rotary base and scaling from `rope_parameters` or from the keys of older configs.

    Args:
        values: Values of a `config.json`.
        partial: The family's usual `partial_rotary_factor`; None means that the family rotates whole heads.

    Raises:
        CheckpointError: A kind of scaling that this package does not support.
    """
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"`rope_parameters` must be an object in config.json, got {given!r}")
    parameters = dict(given)
    bases = (parameters.pop("rope_theta", None), values.get("rope_theta"), 10_000.0)
    theta = next(base for base in bases if base is not None)
    share = _partial(parameters.pop("partial_rotary_factor", None), values, partial)
    older = parameters.pop("type", None)
    kind = parameters.pop("rope_type", None) or older or "default"
    kind = {"su": "longrope"}.get(kind, kind) if isinstance(kind, str) else kind
    if kind == "default":
        return {"rope_theta": theta} | share
    known = {field.name for field in msgspec.structs.fields(RopeScaling)}
    unknown = sorted(key for key, value in parameters.items() if key not in known and value is not None)
    if kind not in ("linear", "dynamic", "llama3", "yarn", "longrope") or unknown:
        what = f"rope_type {kind!r}" if not unknown else f"{', '.join(unknown)} for rope_type {kind!r}"
        raise CheckpointError(
            f"rotary scaling must be default, linear, dynamic, llama3, yarn or longrope in config.json, got {what}"
        )
    if kind in ("yarn", "longrope"):
        whole: Any = values.get("max_position_embeddings")
        original = values.get("original_max_position_embeddings") if kind == "longrope" else None
        original = parameters.setdefault("original_max_position_embeddings", original or whole)
        if kind == "longrope" and parameters.get("factor") is None:
            parameters["factor"] = max(1.0, whole / original)
    scaling = {key: value for key, value in parameters.items() if value is not None}
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **scaling}} | share


def _partial(given: Any, values: Mapping[str, Any], usual: float | None) -> Values:
    shares = (given, values.get("partial_rotary_factor"), usual)
    share = next((share for share in shares if share is not None), 1.0)
    if usual is None and share != 1:
        raise CheckpointError(f"`partial_rotary_factor` must be 1 in this family's config.json, got {share!r}")
    return {} if usual is None else {"partial_rotary_factor": share}


def write_rope(config: ModelConfig) -> Values:
    """Returns rotary settings under the keys of transformers 5 (`rope_parameters`) and of transformers 4."""
    if config.position_encoding != "rope":
        return {}
    share: Values = {}
    if config.partial_rotary_factor != 1:
        share["partial_rotary_factor"] = config.partial_rotary_factor
    if config.rope_scaling is None:
        return {"rope_theta": config.rope_theta} | share
    default = RopeScaling(rope_type="linear", factor=1.0)
    given = msgspec.structs.asdict(config.rope_scaling)
    always = ("low_freq_factor", "high_freq_factor") if config.rope_scaling.rope_type == "llama3" else ()
    scaling = {
        key: value
        for key, value in given.items()
        if key in ("rope_type", "factor", *always) or value != getattr(default, key)
    }
    theta = {"rope_theta": config.rope_theta}
    values: Values = theta | share | {"rope_scaling": scaling, "rope_parameters": scaling | theta | share}
    if config.rope_scaling.rope_type == "longrope":  # transformers 4 looks for the original context here alone
        values["original_max_position_embeddings"] = config.rope_scaling.original_max_position_embeddings
    return values


def read_two_ropes(values: Mapping[str, Any], whole: float, local: float | None) -> Values:
    """Reads the rotary settings of layers without and with a window, of which only the first are scaled.

    Args:
        values: Values of a `config.json`.
        whole: The family's usual base in layers without a window.
        local: The usual base in layers with a window; None means that of the other layers.

    Raises:
        CheckpointError: Scaling in layers with a window, or a kind of scaling that this package does not support.
    """
    given = values.get("rope_parameters")
    nested = isinstance(given, Mapping) and bool(given.keys() & {"full_attention", "sliding_attention"})
    full = dict(given.get("full_attention") or {}) if nested and given else given
    rest = {key: value for key, value in values.items() if key != "rope_parameters" and value is not None}
    found = read_rope({"rope_theta": whole} | rest | {"rope_parameters": full})
    sliding = read_rope({"rope_parameters": dict(given.get("sliding_attention") or {})}) if nested and given else {}
    if "rope_scaling" in sliding:
        raise CheckpointError("`rope_parameters.sliding_attention` must have rope_type 'default' in config.json")
    named = bool(nested and given and (given.get("sliding_attention") or {}).get("rope_theta"))
    base = sliding["rope_theta"] if named else values.get("rope_local_base_freq") or local or found["rope_theta"]
    return found | {"rope_local_base_freq": base}


def write_two_ropes(config: ModelConfig) -> Values:
    """Converts back the fields of `read_two_ropes`, under the keys of transformers 5 and 4."""
    values = write_rope(config)
    full = values.get("rope_parameters") or {"rope_type": "default", "rope_theta": config.rope_theta}
    base = config.rope_local_base_freq or config.rope_theta
    sliding = {"rope_type": "default", "rope_theta": base}
    return values | {
        "rope_local_base_freq": base,
        "rope_parameters": {"full_attention": full, "sliding_attention": sliding},
    }
