"""Hooks that stay out of copies and files of the model, and out of compiled graphs."""

import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.hooks import RemovableHandle

_Hook = TypeVar("_Hook", bound=Callable[..., None])


class OwnHook:
    """A hook of gradflow's: it stays out of copies and files of its module."""


def leave_out_of_copies(hooks: dict[int, Any]) -> None:
    """Pickle and `copy.deepcopy` ask this dict of hooks itself how it is rebuilt: without ours.

    So a saved model loads as it would without gradflow, and a copy is not watched.
    """
    hooks.__reduce_ex__ = partial(_reduce_without_ours, weakref.ref(hooks))  # type: ignore


def _reduce_without_ours(hooks: "weakref.ref[dict[int, Any]]", protocol: int) -> tuple[Any, ...]:
    items = (hooks() or {}).items()
    others = [(key, hook) for key, hook in items if not isinstance(hook, OwnHook)]
    return OrderedDict, (), None, None, iter(others)


def remove(handle: RemovableHandle, hooks: dict[int, Any]) -> None:
    handle.remove()
    if not any(isinstance(hook, OwnHook) for hook in hooks.values()):
        vars(hooks).pop("__reduce_ex__", None)


def untraced(function: _Hook) -> _Hook:
    """`function` as torch.compile runs it: as it is, not as a part of its graph.

    The compiler is there as soon as there is an optimizer; nobody else should pay for its import.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    disabled: _Hook = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled
