"""Names that are looked up when they are first used, so that importing gradflow is light, and old
names that still work for one release."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def lazy(
    package: str, names: Mapping[str, Sequence[str]], renamed: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """The `__getattr__` of `package`: by module of it, the names that come from there.

    Under "" stand modules of the package itself; `renamed` has the new names of old ones.
    """
    homes = {name: home for home, found in names.items() for name in found}

    def look_up(name: str) -> Any:
        if name in (renamed or {}):
            now = (renamed or {})[name]
            warn_renamed(f"{package}.{name}", now)
            return getattr(import_module(package), now)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not homes[name]:
            return import_module(f"{package}.{name}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return look_up


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
