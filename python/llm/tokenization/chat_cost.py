"""Estimates the cost of each step of a chat template before it runs, as characters read and written.

The cost of a step that can produce a large result from small input (`'a' * 10**10`, `'a' | center(10**10)`, a list that
contains itself twice, forty times over) is computed from its arguments. All other steps cost a small multiple of their
input.
"""

import re
from collections.abc import Callable, Collection, Mapping
from types import BuiltinMethodType, GeneratorType, MappingProxyType
from typing import Any

MAX_CHARS = 2**27
MAX_INTEGER_BITS = 4096
MAX_DIGITS = 1000

# The cost of a list entry besides its text: the bytes of a pointer, and at least as much time to inspect the entry as
# copying this many characters takes.
_ENTRY = 8
_VALUE = 128
_TOO_MUCH = MAX_CHARS + 1

_PERCENT_FIELD = re.compile(r"%(?:\([^)]*\))?[^%a-zA-Z]*")
_BRACE_FIELD = re.compile(r"\{[^{}]*")
_NESTED_FIELD = re.compile(r"\{[^{}]*:[^{}]*\{")
_DIGITS = re.compile(r"\d+")

Size = Callable[..., int]

# All container types in a template; checking for abstract classes instead takes several times as long.
_VIEWS: tuple[type[Collection[Any]], ...] = (type({}.keys()), type({}.values()), type({}.items()))
_MANY: tuple[type[Collection[Any]], ...] = (list, tuple, dict, range, set, frozenset, *_VIEWS)


def size_of(value: Any) -> int:
    """Returns the number of characters in `value`, including list entries; stops counting soon after `MAX_CHARS`."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, _MANY):
        return _own_size(value)
    total, left = 0, list[Any]([value])
    while left and total < _TOO_MUCH:
        item = left.pop()
        total += _own_size(item)
        if isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, _MANY) and not isinstance(item, range):
            left += item
    return total


def call_size(called: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Returns the cost of a call; macros are excluded, because their steps are counted separately."""
    total = sum(map(size_of, args)) + sum(map(size_of, kwargs.values()))
    owner = called.__self__ if isinstance(called, BuiltinMethodType) else None
    if isinstance(owner, str):
        method = _METHODS.get(called.__name__, _no_size)
        return total + len(owner) + method(owner, *args, **kwargs)
    return total + size_of(owner) if isinstance(owner, list | tuple) else total


def format_size(text: str, args: Collection[Any]) -> int:
    """Returns the cost of `text.format(*args)`."""
    text = text.replace("{{", "")
    fields = _BRACE_FIELD.findall(text)
    widths = _whole_numbers(args) if _NESTED_FIELD.search(text) else 0
    return len(text) + len(fields) * size_of(args) + _numbers_in(fields) + widths


def filter_size(name: str) -> Size:
    """Returns the function that computes the cost of the filter or test `name` from its arguments."""
    return _FILTERS.get(name, _no_size if name in _FREE else entries if name in _SHALLOW else _value_and_texts)


def entries(value: Any = None, *args: Any, **kwargs: Any) -> int:
    """Returns the cost of a step that only iterates over the entries of a value."""
    del args, kwargs
    if isinstance(value, str):
        return len(value)
    return _ENTRY * len(value) if isinstance(value, _MANY) else 0


def with_lists(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the values, with one-pass iterators converted to lists."""
    return tuple(list(value) if isinstance(value, GeneratorType) else value for value in values)


def _own_size(item: Any) -> int:
    if isinstance(item, int):
        return _VALUE + item.bit_length() // 3
    return _VALUE + entries(item)


def _value_and_texts(value: Any = None, *args: Any, **kwargs: Any) -> int:
    return size_of(value) + sum(len(text) for text in (*args, *kwargs.values()) if isinstance(text, str))


def _no_size(*args: Any, **kwargs: Any) -> int:
    del args, kwargs
    return 0


def _whole(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _whole_numbers(values: Any) -> int:
    if isinstance(values, Mapping):
        return sum(map(_whole, values.values()))
    return sum(map(_whole, values)) if isinstance(values, list | tuple) else _whole(values)


def _numbers_in(fields: list[str]) -> int:
    digits = _DIGITS.findall("".join(f"{field} " for field in fields))
    return sum(int(number) if len(number) < 10 else _TOO_MUCH for number in digits)


def _percent_size(text: str, args: Any) -> int:
    fields = _PERCENT_FIELD.findall(text)
    widths = _whole_numbers(args) if any("*" in field for field in fields) else 0
    return len(text) + len(fields) * size_of(args) + _numbers_in(fields) + widths


def _remainder(left: Any, right: Any) -> int:
    return _percent_size(left, right) if isinstance(left, str) else 0


def _sum(left: Any, right: Any) -> int:
    return entries(left) + entries(right)


def _product(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return _TOO_MUCH if left.bit_length() + right.bit_length() > MAX_INTEGER_BITS else 0
    return max(entries(left) * _whole(right), entries(right) * _whole(left))


def _power(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return _TOO_MUCH if left.bit_length() * abs(right) > MAX_INTEGER_BITS else 0
    return 0


def _width(text: Any, width: Any = 80, *more: Any) -> int:
    del more
    return size_of(text) + _whole(width)


def _replaced(text: Any, old: Any = "", new: Any = "", count: Any = None) -> int:
    del count
    places = text.count(old) if isinstance(text, str) and isinstance(old, str) else size_of(text)
    return size_of(text) + places * size_of(new)


def _joined(values: Any = (), d: Any = "", attribute: Any = None) -> int:
    del attribute
    return size_of(values) + entries(values) * size_of(d)


def _indented(text: Any, width: Any = 4, first: Any = False, blank: Any = False) -> int:
    del first, blank
    indent = len(width) if isinstance(width, str) else _whole(width)
    return size_of(text) + indent * (text.count("\n") + 1 if isinstance(text, str) else 1)


def _filled(values: Any, number: Any = 0, fill_with: Any = None, **names: Any) -> int:
    del fill_with
    return entries(values) + _ENTRY * (_whole(number) + _whole_numbers(names))


def _rounded(value: Any, precision: Any = 0, method: Any = "common") -> int:
    del value, method
    return _TOO_MUCH if _whole(precision) > MAX_DIGITS else 0


def _as_json(
    value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> int:
    del ensure_ascii, sort_keys
    space = len(indent) if isinstance(indent, str) else _whole(indent)
    return size_of(value) * (1 + space + size_of(separators or "") // 4)


def _summed(values: Any, attribute: Any = None, start: Any = 0) -> int:
    del attribute
    return size_of(values) if isinstance(start, int | float) else size_of(values) * (1 + entries(values))


_FREE = frozenset(("count", "d", "default", "first", "last", "length", "safe"))
_SHALLOW = frozenset(
    ("attr", "items", "list", "map", "random", "reject", "rejectattr", "reverse", "select", "selectattr")
)
_FILTERS: Mapping[str, Size] = MappingProxyType(
    {
        "batch": _filled,
        "center": _width,
        "format": lambda text, *args, **kwargs: _percent_size(str(text), kwargs or args),
        "indent": _indented,
        "join": _joined,
        "replace": _replaced,
        "round": _rounded,
        "slice": _filled,
        "sum": _summed,
        "tojson": _as_json,
    }
)
_METHODS: Mapping[str, Size] = MappingProxyType(
    {
        "center": _width,
        "join": lambda separator, values=(): _joined(values, separator),
        "ljust": _width,
        "replace": _replaced,
        "rjust": _width,
        "zfill": _width,
    }
)
OPERATIONS: Mapping[str, Size] = MappingProxyType({"%": _remainder, "*": _product, "**": _power, "+": _sum})
