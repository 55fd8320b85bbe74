"""What JSON or YAML gives, as the type that a place wants; and the way back to JSON."""

import dataclasses
import math
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text",
         list: "a list", dict: "a mapping of names to values",
         Mapping: "a mapping of names to values"}  # fmt: skip

# As an error quotes a value, which may be a whole file, or nested so that its text has no end.
_QUOTE = Repr()
_QUOTE.maxlevel, _QUOTE.maxstring, _QUOTE.maxlong, _QUOTE.maxother = 2, 80, 40, 80
shown = _QUOTE.repr


def typed(value: Any, hint: Any, what: str) -> Any:
    """`value` as the type that `hint` names: a plain one, a Path, a Literal, a list, a mapping, a
    TypedDict (which may hold more than it names), or one of these or None.

    Other types, such as a dataclass, check themselves. Raises ValueError.

    >>> typed(3, float, "`lr`"), typed(None, int | None, "`dose`")
    (3.0, None)
    >>> typed({"a": [1, "x"]}, dict[str, list[int]], "it")
    Traceback (most recent call last):
    ValueError: Expected it['a'][1] to be a whole number, but got 'x'.
    """
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = next(one for one in kinds if one is not NoneType)
    plain, arguments = get_origin(kind) or kind, get_args(kind)
    if is_typeddict(plain):
        return _entries(value, plain, what)
    if plain is Path:
        return value if isinstance(value, Path) else Path(typed(value, str, what))
    if plain is Literal and value not in arguments:
        choices = ", ".join(map(str, arguments))
        raise ValueError(f"Expected {what} to be one of {choices}, but got {shown(value)}.")
    if plain is float:
        value = _number(value)
    if plain in WORDS and not _is(value, plain):
        raise ValueError(f"Expected {what} to be {WORDS[plain]}, but got {shown(value)}.")
    if plain is list and arguments:
        return _items(value, arguments[0], what)
    if plain in (dict, Mapping) and arguments:
        return {str(key): typed(one, arguments[1], f"{what}[{key!r}]")
                for key, one in value.items()}  # fmt: skip
    return value


def typed_fields(kind: type, given: Any, where: str) -> dict[str, Any]:
    """`given` as fields of a dataclass; names the nearest one where one is unknown: ValueError."""
    if not isinstance(given, Mapping):
        raise ValueError(
            f"Expected {where} to be a mapping of names to values, but got {shown(given)}."
        )
    known = [field.name for field in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" It has {', '.join(known)}."
            raise ValueError(f"Expected the fields of {where}, but got {shown(name)}.{hint}")
    hints = _hints(kind)
    return {
        str(name): typed(value, hints[name], f"`{name}` of {where}")
        for name, value in given.items()
    }


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)  # NotRequired stays
    return {name: get_args(one)[0] if get_origin(one) is Annotated else one
            for name, one in hints.items()}  # fmt: skip


def _entries(value: Any, kind: Any, what: str) -> dict[str, Any]:
    given: dict[str, Any] = typed(value, dict, what)
    found = dict(given)
    for name, hint in _hints(kind).items():
        if name in given:
            wanted = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
            found[name] = typed(given[name], wanted, f"{what}[{name!r}]")
        elif name in kind.__required_keys__:
            raise ValueError(f"Expected {name!r} in {what}, but it is missing.")
    return found


def _items(values: list[Any], kind: Any, what: str) -> list[Any]:
    if kind in (int, float, bool, str) and set(map(type, values)) <= {kind}:
        return values  # there may be millions
    return [typed(one, kind, f"{what}[{i}]") for i, one in enumerate(values)]


def _number(value: Any) -> Any:
    """A float where `value` is a number that fits one, else `value` as it is."""
    try:
        return float(value) if type(value) is int else value
    except OverflowError:
        return value


def _is(value: Any, kind: type) -> bool:
    """Whether it is of this type; true and false are no numbers."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def to_json(value: Any) -> Any:
    """`value` as plain JSON types: a dataclass by its fields, an array as lists, and None for a
    number that is not finite, which JSON does not know.

    >>> to_json({"a": (1.0, float("nan"))})
    {'a': [1.0, None]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: to_json(one) for name, one in value.items()}
    if hasattr(value, "tolist"):  # of NumPy, which this module does without
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
