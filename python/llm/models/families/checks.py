"""Checks of `config.json` that hold for all families."""

import math
from collections.abc import Mapping
from typing import Any

from llm.errors import CheckpointError
from llm.models.quantised.scheme import scheme_of

_FLAGS = (
    "attention_bias",
    "mlp_bias",
    "norm_topk_prob",
    "qkv_bias",
    "scale_attn_weights",
    "tie_word_embeddings",
    "use_sliding_window",
)
_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "first_k_dense_replace",
)
MOST_LAYERS = 10_000
_LARGEST = 2**31 - 1


def check_values(values: Mapping[str, Any]) -> None:
    """Rejects unknown schemes, flags that are no booleans and numbers out of range, before a family reads them.

    Raises:
        CheckpointError: An unknown scheme, a flag that is no boolean, a number that is not finite or far too large.
    """
    scheme_of(values)
    for key, value in values.items():
        if key in _FLAGS and not isinstance(value, bool | None):
            raise CheckpointError(f"`{key}` must be true or false in config.json, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise CheckpointError(f"`{key}` must be finite in config.json, got {value!r}")
        most = MOST_LAYERS if key in _COUNTS else _LARGEST
        if isinstance(value, int) and value > most:
            raise CheckpointError(f"`{key}` must be at most {most:,} in config.json, got {value}")
