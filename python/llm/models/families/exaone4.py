"""EXAONE 4.0: norms of each part's output inside the residual sum, no positions in layers without a window."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import (
    LLAMA_TOP,
    QK_NORMS,
    Family,
    Values,
    read_activation,
    read_sizes,
    write_sizes,
)
from llm.models.families.cuts import full_layers, layer_types_of, usual, written_types
from llm.models.families.olmo2 import BLOCK
from llm.settings.model import ModelConfig


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`; without a window, all layers attend to everything and have positions."""
    has_window = values.get("sliding_window", 4096) is not None
    values = usual(values, {"num_key_value_heads": 32, "sliding_window_pattern": 4})
    fields = {
        "hidden_act": read_activation(values),
        "norm_placement": "inside",
        "qk_norm": True,
    }
    return read_sizes(values) | fields | (_windows(values) if has_window else {})


def _windows(values: Mapping[str, Any]) -> Values:
    pattern, layers = values["sliding_window_pattern"], values["num_hidden_layers"]
    if isinstance(pattern, str) and values.get("layer_types") is None:
        # `L` and `G` in turn; the last layer is global whatever the pattern says.
        kinds = [{"L": "sliding_attention", "G": "full_attention"}[letter] for letter in pattern]
        types = [kinds[layer % len(kinds)] for layer in range(layers - 1)] + ["full_attention"]
    else:
        types = layer_types_of(values, pattern)
    window = values.get("sliding_window", 4096)
    return {"sliding_window": window, "layer_types": types, "unrotated_layers": full_layers(types)}


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    return write_sizes(config) | {
        "hidden_act": config.hidden_act or "silu",
        "sliding_window": config.sliding_window,
        "layer_types": written_types(config),
    }


FAMILY = Family("exaone4", "Exaone4ForCausalLM", read, write, LLAMA_TOP, BLOCK | QK_NORMS)
