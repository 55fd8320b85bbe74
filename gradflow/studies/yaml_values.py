"""What YAML gives, as the type that a field wants, or a sentence that says what was expected."""

from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text",
         Mapping: "a mapping of names to values"}  # fmt: skip


def typed(value: Any, hint: Any, what: str) -> Any:
    """`value` as the plain type or mapping that `hint` names; all other types check themselves.

    YAML takes 1e-3, without a point, for text: where a number is wanted it is one. Raises
    ValueError.

    >>> typed("1e-3", float, "`lr`"), typed(3, float, "`lr`"), typed(None, int | None, "`dose`")
    (0.001, 3.0, None)
    """
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = next(one for one in kinds if one is not NoneType)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if kind is float:
        value = _number(value)
    kind = get_origin(kind) or kind
    if kind in WORDS and not _is(value, kind):
        raise ValueError(f"Expected {what} to be {WORDS[kind]}, but got {value!r}.")
    return value


def _number(value: Any) -> Any:
    """A float where `value` is or spells a number, else `value` as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _is(value: Any, kind: type) -> bool:
    """Whether it is of this type; true and false are no numbers."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
