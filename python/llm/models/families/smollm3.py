"""SmolLM3: Llama whose every fourth layer has no positions."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_BLOCK, LLAMA_TOP, Family, Values, read_activation, read_sizes, write_sizes
from llm.models.families.cuts import usual, written_types
from llm.settings.model import ModelConfig

_DEFAULTS = {"num_key_value_heads": 4, "rope_theta": 2e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`; in `no_rope_layers`, 1 means a layer with positions."""
    values = usual(values, _DEFAULTS)
    layers, every = range(values["num_hidden_layers"]), values.get("no_rope_layer_interval", 4)
    rotated = values.get("no_rope_layers") or [int((layer + 1) % every != 0) for layer in layers]
    bias = bool(values.get("attention_bias", False))
    fields = {
        "hidden_act": read_activation(values),
        "attention_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": bool(values.get("mlp_bias", False)),
        "unrotated_layers": [layer for layer in layers if not rotated[layer]],
    }
    return read_sizes(values) | fields | _windows(values, [bool(rotated[layer]) for layer in layers])


def _windows(values: Mapping[str, Any], rotated: list[bool]) -> Values:
    window = values.get("sliding_window") if values.get("use_sliding_window") else None
    if window is None:
        return {}
    usual_types = ["full_attention" if has else "sliding_attention" for has in rotated]
    return {"sliding_window": window, "layer_types": list(values.get("layer_types") or usual_types)}


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`; the family's usual padding is an id that small vocabularies lack."""
    return write_sizes(config) | {
        "hidden_act": config.hidden_act or "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": bool(config.mlp_bias),
        "no_rope_layers": [int(layer not in config.unrotated_layers) for layer in range(config.num_hidden_layers)],
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": written_types(config),
        "pad_token_id": None,
    }


FAMILY = Family("smollm3", "SmolLM3ForCausalLM", read, write, LLAMA_TOP, LLAMA_BLOCK)
