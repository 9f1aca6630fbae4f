"""Registry of pluggable components by kind and name.

Built-in components are listed by import path (`module:attribute`) and imported on first use, which keeps `import llm`
light.
"""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from llm.errors import RegistryError
from llm.settings.names import suggest

C = TypeVar("C", bound=type)

BUILTIN_COMPONENTS: dict[str, dict[str, str]] = {
    "attention": {
        "gqa": "llm.models.layers.attention:Attention",
        "mla": "llm.models.layers.attention:LatentAttention",
    },
    "mlp": {
        "swiglu": "llm.models.layers.mlp:SwiGLU",
        "gelu": "llm.models.layers.mlp:MLP",
        "moe": "llm.models.layers.moe:MoE",
    },
    "norm": {
        "rms_norm": "llm.models.layers.norm:RMSNorm",
        "offset_rms_norm": "llm.models.layers.norm:OffsetRMSNorm",
        "layer_norm": "llm.models.layers.norm:LayerNorm",
        "layer_norm_no_bias": "llm.models.layers.norm:LayerNormNoBias",
    },
    "position_encoding": {
        "rope": "llm.models.layers.rotary:RotaryEmbedding",
        "learned": "llm.models.layers.rotary:LearnedPositions",
        "sinusoidal": "llm.models.layers.rotary:SinusoidalPositions",
        "none": "llm.models.layers.rotary:PositionEncoding",
    },
}


class ComponentRegistry:
    """Maps a kind and a name to a component class.

    Example:
        >>> from llm import registry
        >>> "rms_norm" in registry.names("norm")
        True
    """

    def __init__(self, components: dict[str, dict[str, str]]) -> None:
        self._components: dict[str, dict[str, Any]] = {kind: dict(named) for kind, named in components.items()}

    def kinds(self) -> list[str]:
        """Returns the kinds of components."""
        return sorted(self._components)

    def names(self, kind: str) -> list[str]:
        """Returns the names registered for `kind`.

        Raises:
            RegistryError: The kind is unknown; the message lists the valid kinds.
        """
        return sorted(self._of_kind(kind))

    def register(self, kind: str, name: str) -> Callable[[C], C]:
        """Returns a decorator that registers a class as `name`.

        Raises:
            RegistryError: The kind is unknown, or another class has this name.
        """
        named = self._of_kind(kind)

        def add(component: C) -> C:
            known = named.get(name)
            if known is not None and known is not component:
                raise RegistryError(f"{kind} `{name}` is already registered as {known!r}\nhint: choose another name")
            named[name] = component
            return component

        return add

    def get(self, kind: str, name: str) -> Any:
        """Returns the class registered as `name`, importing it if necessary.

        Raises:
            RegistryError: The kind or name is unknown; the message lists the valid ones.
        """
        named = self._of_kind(kind)
        if name not in named:
            raise RegistryError(f"unknown {kind} `{name}`; {suggest(name, named)}")
        component = named[name]
        if isinstance(component, str):
            module, _, attribute = component.partition(":")
            return getattr(importlib.import_module(module), attribute)
        return component

    def _of_kind(self, kind: str) -> dict[str, Any]:
        if kind not in self._components:
            raise RegistryError(f"unknown kind of component `{kind}`; {suggest(kind, self._components)}")
        return self._components[kind]


registry = ComponentRegistry(BUILTIN_COMPONENTS)
