"""The scheme of a checkpoint that is quantised already, as settings that write another one like it."""

import math
from collections import Counter
from typing import Any, get_args

from llm.checkpoint import Checkpoint
from llm.errors import CheckpointError
from llm.models.gguf.reader import read_tensors
from llm.models.packing import is_quantised
from llm.models.quantised import scheme_of
from llm.settings.quantization import GROUP_SIZES, Scheme


def stored_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the settings of `quantize` that write weights as most of a checkpoint's quantised ones are.

    Raises:
        CheckpointError: The checkpoint isn't quantised, or in a way that `quantize` doesn't write.
    """
    if not checkpoint.is_quantised:
        raise CheckpointError(f"`scheme` base needs a base that is quantised, got {checkpoint}\nhint: name a scheme")
    found = _of_gguf(checkpoint) if checkpoint.is_gguf else _of_directory(checkpoint)
    if found is None:
        raise CheckpointError(
            f"{checkpoint} is quantised in a way that can't be written\n"
            f"hint: leave `scheme` out to write floats, or name one of {', '.join(get_args(Scheme))}"
        )
    return found


def _of_gguf(checkpoint: Checkpoint) -> dict[str, Any] | None:
    counts: Counter[str] = Counter()
    for tensor in read_tensors(checkpoint).values():
        if is_quantised(tensor):
            counts[tensor.type_name.lower()] += math.prod(tensor.shape)
    scheme = counts.most_common(1)[0][0] if counts else None
    return {"scheme": scheme} if scheme in get_args(Scheme) else None


def _of_directory(checkpoint: Checkpoint) -> dict[str, Any] | None:
    scheme = scheme_of(checkpoint.values)
    if scheme is None or scheme.method != "compressed-tensors" or len(set(scheme.groupings)) != 1:
        return None
    bits, group_size = scheme.groupings[0]
    if group_size in GROUP_SIZES:
        return {"scheme": f"int{bits}", "group_size": group_size}
    groups = checkpoint.values["quantization_config"]["config_groups"].values()
    rounds_inputs = all(group.get("input_activations") for group in groups)
    return {"scheme": "w8a8"} if group_size is None and bits == 8 and rounds_inputs else None
