"""The declaration of a field: its plain type, its range and its description."""

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec

_DECLARED = ("ge", "gt", "le", "lt", "description", "extra")


def declared(kind: Any) -> tuple[Any, msgspec.Meta]:
    """Splits `Annotated[T, Meta] | None` and its like into `T` and its `Meta`; of several `Meta` the last one wins."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    metas: tuple[Any, ...] = ()
    if get_origin(kind) is Annotated:
        kind, *metas = get_args(kind)  # type: ignore[assignment]
    found = {name: getattr(meta, name) for meta in metas for name in _DECLARED if getattr(meta, name) is not None}
    return kind, msgspec.Meta(**found)


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    """The value of a field that is left out; `msgspec.NODEFAULT` if the field is required."""
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def flat_fields(kind: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, msgspec.structs.FieldInfo]]:
    """All fields below `kind` by their dotted names; a section that is always there counts through its fields only."""
    for field in msgspec.structs.fields(kind):
        nested = structs_of(field.type)
        if not isinstance(default_of(field), msgspec.Struct):
            yield prefix + field.name, field
        for struct in nested:
            yield from flat_fields(struct, f"{prefix}{field.name}.")


def structs_of(kind: Any) -> list[type[msgspec.Struct]]:
    """The structs that a field of this type may hold."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [found for part in get_args(kind) for found in structs_of(part)]
