"""Reads which scheme of quantised weights a `config.json` names."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llm.errors import CheckpointError

_KEYS = ("quantization_config", "compression_config")
_HINT = (
    "hint: use the unquantized checkpoint, a GGUF file, or one quantized by GPTQ, AWQ or compressed-tensors "
    "in 4 or 8 bits"
)
_GPTQ_FORMATS = ("gptq", "gptq_v2")
_COMPRESSED_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
    "dense",
)
_STRATEGIES = (None, "group", "channel", "tensor")
_MAX_GROUP = 2**31 - 1


class Grouping(NamedTuple):
    """How the weights of some modules are quantised.

    Attributes:
        bits: Bits of a weight.
        group_size: Columns that share a scale, or None for all columns of a row, or of the matrix.
    """

    bits: int
    group_size: int | None


class Scheme(NamedTuple):
    """How the files of a checkpoint hold quantised weights.

    Attributes:
        method: "gptq", "awq", "compressed-tensors" or "mxfp4".
        groupings: The groupings that the config allows; empty if it sets them module by module.
        adds_one: Whether zero points are stored less one, as GPTQ's first format does.
    """

    method: str
    groupings: tuple[Grouping, ...] = ()
    adds_one: bool = False

    def allows(self, grouping: Grouping) -> bool:
        """Whether the config allows a grouping that the tensors of a module show."""
        return not self.groupings or grouping in self.groupings


def scheme_of(values: Mapping[str, Any]) -> Scheme | None:
    """Returns the scheme that a `config.json` names, or None if its weights are plain numbers.

    Raises:
        CheckpointError: A scheme that this package does not read, or values that contradict it.
    """
    given = next((values[key] for key in _KEYS if values.get(key)), None)
    if given is None:
        return None
    method = given.get("quant_method") or given.get("quant_algo") if isinstance(given, Mapping) else None
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise CheckpointError(
            f"config.json says that the weights are quantized by {method or 'an unnamed scheme'} "
            f"(`quantization_config`), which this package does not read\n{_HINT}"
        )
    try:
        return reader(given)
    except (TypeError, AttributeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"`quantization_config` has a value of the wrong type in config.json: {error}") from None


def _gptq(given: Mapping[str, Any]) -> Scheme:
    form = given.get("checkpoint_format") or "gptq"
    _require("checkpoint_format", form, _GPTQ_FORMATS)
    grouping = _grouping(given, "bits", "group_size", (4, 8))
    return Scheme("gptq", () if given.get("dynamic") else (grouping,), adds_one=form == "gptq")


def _awq(given: Mapping[str, Any]) -> Scheme:
    _require("version", str(given.get("version") or "gemm").lower(), ("gemm",))
    _require("zero_point", given.get("zero_point", True), (True,))
    bits, group = ("bits", "group_size") if "bits" in given else ("w_bit", "q_group_size")
    return Scheme("awq", (_grouping(given, bits, group, (4,)),))


def _mxfp4(given: Mapping[str, Any]) -> Scheme:
    return Scheme("mxfp4", (Grouping(4, 32),))


def _compressed_tensors(given: Mapping[str, Any]) -> Scheme:
    _require("format", given.get("format", "pack-quantized"), _COMPRESSED_FORMATS)
    sparsity = given.get("sparsity_config") or {}
    _require("sparsity_config.format", sparsity.get("format", "dense"), ("dense",))
    groups = given.get("config_groups") or {}
    found = []
    for name, group in groups.items():
        _require(f"config_groups.{name}.format", group.get("format") or "pack-quantized", _COMPRESSED_FORMATS)
        weights = group.get("weights")
        if weights is not None:
            found.append(_compressed_group(f"config_groups.{name}.weights", weights))
    if not found:
        raise CheckpointError(f"`quantization_config.config_groups` must say how weights are quantized\n{_HINT}")
    return Scheme("compressed-tensors", tuple(found))


def _compressed_group(name: str, weights: Mapping[str, Any]) -> Grouping:
    strategy = weights.get("strategy")
    _require(f"{name}.strategy", strategy, _STRATEGIES)
    _require(f"{name}.type", weights.get("type", "int"), ("int", "float"))
    grouping = _grouping(weights, "num_bits", "group_size", (4, 8), name)
    return grouping if strategy in (None, "group") else grouping._replace(group_size=None)


def _grouping(
    given: Mapping[str, Any], bits: str, group: str, allowed: Sequence[int], prefix: str = "quantization_config"
) -> Grouping:
    size = given.get(group)
    if size is not None and (type(size) is not int or size == 0 or not -1 <= size <= _MAX_GROUP):
        raise CheckpointError(f"`{prefix}.{group}` must be positive, or -1 for whole rows, got {size!r} in config.json")
    _require(bits, given.get(bits), allowed, prefix)
    return Grouping(given[bits], None if size in (None, -1) else size)


def _require(name: str, value: Any, allowed: Sequence[Any], prefix: str = "quantization_config") -> None:
    # True and 4.0 equal 1 and 4, but are no numbers of bits.
    if not any(value == each and type(value) is type(each) for each in allowed):
        name = name if name.startswith("config_groups") else f"{prefix}.{name}"
        choices = ", ".join(repr(each) for each in allowed)
        raise CheckpointError(f"`{name}` must be one of {choices}, got {value!r} in config.json\n{_HINT}")


_READERS = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors, "mxfp4": _mxfp4}
