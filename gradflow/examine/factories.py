"""Networks by name: from a module of the user's, from torchvision, or gradflow's own."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType

from torch import nn

from gradflow.nets import NETWORKS

N_CLASSES = 10  # of gradflow's own networks, which have no default
TORCHVISION = "torchvision"


def load_factory(name: str) -> nn.Module | Callable[[], nn.Module]:
    """The function that makes the network `name`, or the network itself where the name is of one.

    `module:factory` is imported as Python would; `resnet50` and `torchvision:resnet50` are built by
    torchvision without weights, so that nothing is downloaded; `plain_34` and the others of
    `gradflow.nets` have 10 classes. Raises ValueError where there is no such thing, or where it
    cannot be called without arguments.
    """
    module, colon, attribute = name.partition(":")
    if module == TORCHVISION and colon:
        return _from_torchvision(attribute)
    if colon:
        if not all(part.isidentifier() for part in (*module.split("."), attribute)):
            raise ValueError(
                f"Expected a Python module and a name in it, such as mynets:make_net, but got "
                f"{name!r}."
            )
        return _from_module(module, attribute)
    if name in NETWORKS:
        return partial(NETWORKS[name], N_CLASSES)
    return _from_torchvision(name)


def _from_torchvision(name: str) -> Callable[[], nn.Module]:
    """Without weights, also of the backbone: no download."""
    from torchvision.models import get_model_builder, list_models

    if name not in list_models():
        raise ValueError(
            f"Expected a network of torchvision or gradflow, or module:factory, but got {name!r}."
            f"{_close(name, [*list_models(), *NETWORKS])}"
        )
    builder = get_model_builder(name)
    options = {
        option: value
        for option, value in {"weights_backbone": None, "init_weights": True}.items()
        if option in inspect.signature(builder).parameters
    }
    return partial(builder, weights=None, **options)


def _from_module(module_name: str, attribute: str) -> nn.Module | Callable[[], nn.Module]:
    module = _import(module_name)
    if not hasattr(module, attribute):
        raise ValueError(
            f"Expected {attribute!r} in the module {module_name!r}, but it has no such name."
            f"{_close(attribute, [n for n in vars(module) if not n.startswith('_')])}"
        )
    found = getattr(module, attribute)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ValueError(
            f"Expected a function or class that makes a network, but {module_name}:{attribute} is "
            f"of type {type(found).__name__}."
        )
    needed = _needed_arguments(found)
    if needed:
        raise ValueError(
            f"Expected {module_name}:{attribute} to be callable without arguments, but it needs "
            f"{', '.join(needed)}. Add a function that fills them in: "
            f"`def make(): return {attribute}({', '.join(f'{one}=…' for one in needed)})`."
        )
    factory: Callable[[], nn.Module] = found
    return factory


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise  # an import inside the user's module: the traceback is what helps
        files = [path.stem for path in Path().glob("*.py")]
        raise ValueError(
            f"Expected a module that can be imported, but there is no {name!r}. Start "
            f"gradflow in the folder where `import {name}` works.{_close(name, files)}"
        ) from error


def _needed_arguments(function: Callable[..., object]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions tell nothing
        return []
    gathers = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in gathers]


def _close(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""
