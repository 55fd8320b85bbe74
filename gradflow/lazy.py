"""Names that are looked up when they are first used, so that importing gradflow is light, and old
names that still work for one release."""

import ast
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def lazy(
    package: str, renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package.

    What it imports under TYPE_CHECKING is imported when it is first used: read in its own source,
    so that it is written once. `renamed` has the new names of old ones.
    """
    source = sys.modules[package].__file__
    assert source is not None, f"{package} is a package with a file"
    homes = {
        alias.name: f"{node.module}.{alias.name}" if node.module == package else str(node.module)
        for node in ast.walk(ast.parse(Path(source).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def look_up(name: str) -> Any:
        if name in (renamed or {}):
            now = (renamed or {})[name]
            warn_renamed(f"{package}.{name}", now)
            return getattr(import_module(package), now)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = import_module(homes[name])
        return found if homes[name] == f"{package}.{name}" else getattr(found, name)

    return look_up, lambda: sorted({*vars(sys.modules[package]), *homes})


def renamed_arguments(**now: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that still takes its arguments by these old names: `old="new"`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in now.keys() & kwargs.keys():
                warn_renamed(f"`{name}`", now[name])
                kwargs[now[name]] = kwargs.pop(name)
            return function(*args, **kwargs)

        return call

    return decorate


def warn_renamed(old: str, new: str) -> None:
    """For the line that calls what calls this."""
    text = f"{old} is now called {new}; the old name goes with the next release."
    warnings.warn(text, DeprecationWarning, stacklevel=3)
