"""Readers of quantised weights in Hugging Face directories, one file per format.

The tensors decide: a module that has a scheme's tensors is quantised, any other is not, whatever the config's lists of
modules and patterns say. What the config says of bits and groups is checked against the tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm.errors import CheckpointError
from llm.models.quantised import awq, compressed_tensors, gptq, mxfp4
from llm.models.quantised.codes import CodedTensor, QuantisedTensor
from llm.models.quantised.members import MemberError
from llm.models.quantised.scheme import Scheme, scheme_of
from llm.models.tensor_files import OnDisk, open_tensors

_MAX_PROBLEMS = 20
_OPENERS = {
    "gptq": (gptq.open_gptq, gptq.LEAVES),
    "awq": (awq.open_awq, awq.LEAVES),
    "compressed-tensors": (compressed_tensors.open_compressed, compressed_tensors.LEAVES),
}


def open_weights(directory: Path, values: Mapping[str, Any]) -> Mapping[str, OnDisk]:
    """Opens the weights of a checkpoint directory; each quantised matrix is one tensor under its usual name.

    Args:
        directory: The directory.
        values: The values of its `config.json`.

    Raises:
        CheckpointError: As for `open_tensors`; or a scheme that is not supported, or tensors that contradict it.
    """
    scheme = scheme_of(values)
    tensors = open_tensors(directory)
    return tensors if scheme is None else joined(scheme, tensors)


def joined(scheme: Scheme, tensors: Mapping[str, OnDisk]) -> dict[str, OnDisk]:
    """Returns the tensors with those of each quantised module as one.

    Raises:
        CheckpointError: Tensors of modules are missing or contradict each other; all of them are listed.
    """
    modules, found = _modules(scheme, tensors)
    problems = []
    for module, members in modules.items():
        try:
            tensor = _opened(scheme, module, members)
        except MemberError as error:
            problems.append(f"{module} {error}")
            continue
        if tensor.name in found:
            problems.append(f"{module} is there twice, quantized and as {tensor.name}")
        found[tensor.name] = tensor
    if problems:
        rest = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        raise CheckpointError(
            f"quantized weights ({scheme.method}) contradict themselves or config.json:\n  "
            + "\n  ".join(problems[:_MAX_PROBLEMS] + rest)
        )
    if not modules:
        raise CheckpointError(
            f"config.json says that the weights are quantized by {scheme.method} (`quantization_config`), "
            "but no tensor of this scheme is there\n"
            "hint: remove `quantization_config` if the weights are plain numbers"
        )
    return found


def _opened(scheme: Scheme, module: str, members: Mapping[str, OnDisk]) -> QuantisedTensor:
    if scheme.method == "mxfp4":
        return mxfp4.open_experts(module, members)
    return _OPENERS[scheme.method][0](scheme, module, members)


def _modules(scheme: Scheme, tensors: Mapping[str, OnDisk]) -> tuple[dict[str, dict[str, OnDisk]], dict[str, OnDisk]]:
    """Returns the tensors of each quantised module by what they are, and all other tensors by name."""
    modules: dict[str, dict[str, OnDisk]] = {}
    for name, tensor in tensors.items():
        module, leaf = _split(scheme, name)
        if leaf is not None:
            modules.setdefault(module, {})[leaf] = tensor
    rest = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        is_compressed = scheme.method == "compressed-tensors"
        if is_compressed and leaf == "weight" and module in modules:
            modules[module][leaf] = tensor
        elif _split(scheme, name)[1] is None and not (is_compressed and leaf in compressed_tensors.UNUSED):
            rest[name] = tensor
    return modules, rest


def _split(scheme: Scheme, name: str) -> tuple[str, str | None]:
    """Returns the module of a tensor, and what the tensor is there; None if it is no part of the scheme."""
    if scheme.method == "mxfp4":
        leaf = next((end for end in (mxfp4.BLOCKS, mxfp4.SCALES) if name.endswith(end)), None)
        return name.removesuffix(leaf or ""), leaf
    module, _, leaf = name.rpartition(".")
    return module, leaf if leaf in _OPENERS[scheme.method][1] else None


__all__ = ["CodedTensor", "QuantisedTensor", "Scheme", "joined", "open_weights", "scheme_of"]
