"""The settings of a quantisation."""

from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from llm.errors import ConfigError
from llm.settings.merge import validated
from llm.settings.names import suggest

Scheme: TypeAlias = Literal["int4", "int8", "w8a8", "q8_0", "q4_0", "q4_k", "q6_k"]
Method: TypeAlias = Literal["auto", "rtn", "gptq", "awq"]
QuantizedFormat: TypeAlias = Literal["auto", "compressed-tensors", "gguf"]
GROUP_SIZES = (32, 64, 128)
# llama.cpp's types of the same bits, whose blocks hold a scale and integers of a row like a group does.
_IN_GGUF: dict[str, Scheme] = {"int4": "q4_0", "int8": "q8_0"}


class QuantizationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How weights are rounded to integers of few bits, and on which text."""

    scheme: Annotated[
        Scheme, Meta(description="Stored integers. int4, int8 and w8a8 make a directory, the others a GGUF file")
    ] = "int4"
    method: Annotated[
        Method,
        Meta(description="How values are rounded; auto is gptq for int4 and q4_0, and rtn for all other schemes"),
    ] = "auto"
    format: Annotated[
        QuantizedFormat,
        Meta(description="What is written; auto follows the scheme, gguf turns int4 into q4_0 and int8 into q8_0"),
    ] = "auto"
    group_size: Annotated[
        int, Meta(ge=32, le=128, description="Weights per scale of int4 and int8: 32, 64 or 128.")
    ] = 32
    calibration: Annotated[
        tuple[str, ...], Meta(description="Files, directories or patterns of text; default: Shakespeare's plays.")
    ] = ()
    calibration_tokens: Annotated[int, Meta(ge=64, description="Number of tokens that gptq and awq learn from.")] = (
        16384
    )
    heldout_tokens: Annotated[
        int, Meta(ge=64, description="Number of further tokens on which the result is compared with the original.")
    ] = 4096
    window_tokens: Annotated[int, Meta(ge=16, description="Length of a piece of text, at most the context.")] = 512
    damping: Annotated[
        float, Meta(gt=0, lt=1, description="Share of the mean that gptq adds to the diagonal of its Hessian.")
    ] = 0.01
    act_order: Annotated[
        bool, Meta(description="gptq rounds the columns with the largest activations first; groups stay as they are.")
    ] = True

    def __post_init__(self) -> None:
        """Rules across fields.

        Raises:
            ConfigError: A group size that isn't supported, or a scheme that the format or the method can't hold.
        """
        if self.group_size not in GROUP_SIZES:
            raise ConfigError(f"`group_size` must be one of 32, 64, 128, got {self.group_size}")
        if self.format == "gguf" and self.scheme == "w8a8":
            raise ConfigError(
                "`scheme` must be int8 or int4 for GGUF, got 'w8a8'\nhint: files have no activation types"
            )
        if self.format == "compressed-tensors" and self.scheme.startswith("q"):
            raise ConfigError(
                f"`scheme` must be int4, int8 or w8a8 for compressed-tensors, got {self.scheme!r}\n"
                "hint: q8_0, q4_0, q4_k and q6_k are types of GGUF files"
            )
        if self.method in ("gptq", "awq") and self.stored in ("q4_k", "q6_k"):
            raise ConfigError(
                f"`method` must be rtn for {self.stored}, got {self.method!r}\n"
                f"hint: {self.method} rounds for int4, int8, w8a8, q4_0 and q8_0"
            )

    @property
    def stored(self) -> Scheme:
        """The scheme that is written."""
        return _IN_GGUF.get(self.scheme, self.scheme) if self.format == "gguf" else self.scheme

    @property
    def is_gguf(self) -> bool:
        """Whether the result is a GGUF file."""
        return self.stored.startswith("q")

    @property
    def chosen_method(self) -> Literal["rtn", "gptq", "awq"]:
        """The method, where `auto` is resolved."""
        if self.method != "auto":
            return self.method
        return "gptq" if self.stored in ("int4", "q4_0") else "rtn"


def quantization_config(**settings: Any) -> QuantizationConfig:
    """Builds a `QuantizationConfig` from its fields as keywords.

    Raises:
        ConfigError: An unknown name (the nearest valid one is named), a wrong type or a value out of range.
    """
    for name in settings.keys() - set(QuantizationConfig.__struct_fields__):
        raise ConfigError(f"unknown setting `{name}`; {suggest(name, QuantizationConfig.__struct_fields__)}")
    if settings.get("scheme", "int4") not in get_args(Scheme):
        raise ConfigError(f"`scheme` must be one of {', '.join(get_args(Scheme))}, got {settings['scheme']!r}")
    return validated(QuantizationConfig(**settings))
