"""Values of a config: plain data, converted to the types of a signature."""

import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ml_collections import ConfigDict

from grlu.errors import UserError

_WORDS = {  # Type → one value, several values.
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "booleans"),
    str: ("a string", "strings"),
    dict: ("a mapping", "values"),
}


def plain(value: Any) -> Any:
    """Return `value` with all mappings as dicts and all lists as tuples."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(entry) for entry in value)
    return value


def convert(value: Any, hint: Any) -> Any:
    """Convert `value` to the type `hint`: integers to floats, lists to tuples.

    Raises:
        ValueError: if it is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (hint in (None, types.NoneType) and value is None):
        return value
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
    elif origin in (typing.Union, types.UnionType):
        for member in arguments:
            try:
                return convert(value, member)
            except ValueError:
                continue
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif (origin or hint) in (tuple, list, Sequence):
        if isinstance(value, list | tuple):
            return _convert_each(value, origin, arguments)
    elif isinstance(origin or hint, type) and isinstance(value, origin or hint):
        return value
    raise ValueError(f"{value!r} is not {describe(hint)}")


def _convert_each(values: Sequence[Any], origin: Any, arguments: tuple[Any, ...]) -> tuple:
    if origin is tuple and Ellipsis not in arguments:
        if len(values) != len(arguments):
            raise ValueError(f"{len(arguments)} values are needed")
        return tuple(convert(v, hint) for v, hint in zip(values, arguments, strict=True))
    return tuple(convert(value, arguments[0] if arguments else Any) for value in values)


def describe(hint: Any) -> str:
    """Describe a type in words, for an error."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if (origin or hint) in (tuple, list, Sequence):
        if origin is tuple and Ellipsis not in arguments:
            return f"a list of {len(arguments)} values"
        return f"a list of {_WORDS.get(arguments[0], _WORDS[dict])[1]}" if arguments else "a list"
    if hint in (None, types.NoneType):
        return "null"
    kind = origin or hint
    return _WORDS[kind][0] if kind in _WORDS else getattr(kind, "__name__", str(hint))


def require(where: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Raise UserError unless `low <= value <= high`; None passes."""
    if value is not None and not low <= value <= high:
        span = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UserError(f"{where} must be {span}, got {value:g}")
