"""Checks the tensors that make up quantised matrices by their names, types and shapes, before any is read."""

from collections.abc import Mapping, Sequence

from llm.models.quantised.codes import FLOATS
from llm.models.tensor_files import OnDisk

Members = Mapping[str, OnDisk]
SCALE_TYPES = tuple(kind for kind in FLOATS if kind != "F64")


class MemberError(Exception):
    """Says what is wrong with the tensors of one module; the opener lists all of them in one `CheckpointError`."""


def need(members: Members, *names: str) -> list[OnDisk]:
    """Returns members by name.

    Raises:
        MemberError: One is missing.
    """
    missing = [name for name in names if name not in members]
    if missing:
        raise MemberError(f"lacks {', '.join(missing)}")
    return [members[name] for name in names]


def check(members: Members, name: str, types: Sequence[str], shape: Sequence[int]) -> None:
    """Checks type and shape of one member.

    Raises:
        MemberError: They differ.
    """
    found = members[name]
    if found.type_name not in types:
        raise MemberError(f"has {name} of type {found.type_name}, which must be {' or '.join(types)}")
    if list(found.shape) != list(shape):
        raise MemberError(f"has {name} of shape {list(found.shape)}, which must be {list(shape)}")


def check_matrix(members: Members, name: str, types: Sequence[str]) -> tuple[int, int]:
    """Returns the shape of a member that must be a matrix with values.

    Raises:
        MemberError: It is of another type, or no matrix.
    """
    found = members[name]
    if found.type_name not in types:
        raise MemberError(f"has {name} of type {found.type_name}, which must be {' or '.join(types)}")
    if len(found.shape) != 2 or 0 in found.shape:
        raise MemberError(f"has {name} of shape {list(found.shape)}, which must be a matrix with values")
    return found.shape[0], found.shape[1]
