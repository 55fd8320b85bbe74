"""The weight layers of a network from input to output, and parts of that way."""

from collections.abc import Collection, Sequence

from torch import nn

from gradflow.analysis.layers import PROJECTION
from gradflow.analysis.network import third
from gradflow.record.sites import kind_of


def path_layers(model: nn.Module) -> list[str]:
    """The convolutions and linear layers, without projections, in the order of definition.

    That is their order from input to output in gradflow's and torchvision's ResNets. Their weights
    are `path_weights`.
    """
    return [
        name
        for name, module in model.named_modules()
        if kind_of(module) in ("conv", "linear") and PROJECTION not in f".{name}."
    ]


def path_weights(model: nn.Module) -> list[str]:
    """The names of the weights of `path_layers`, input first."""
    return [f"{name}.weight" for name in path_layers(model)]


def belonging(model: nn.Module, layers: Collection[str]) -> list[str]:
    """The names of the parameters and buffers of `layers`, which are `path_layers`.

    With a layer goes all that is defined after it and before the next layer of the path: its norm,
    and in a residual network the projection of the block that it ends.
    """
    path = set(path_layers(model))
    state = model.state_dict().keys()
    names: list[str] = []
    is_chosen = False
    for layer, module in model.named_modules():
        if layer in path:
            is_chosen = layer in layers
        if is_chosen:
            own = [*module.named_parameters(layer, False), *module.named_buffers(layer, False)]
            names += [name for name, _ in own if name in state]
    return names


def thirds(names: Sequence[str]) -> dict[str, list[str]]:
    """The first, middle and last third of a path; what does not divide goes to the middle.

    >>> thirds(["a", "b", "c", "d"])
    {'first third': ['a'], 'middle third': ['b', 'c'], 'last third': ['d']}
    """
    first, last = third(len(names), "first"), third(len(names), "last")
    return {
        "first third": list(names[first]),
        "middle third": list(names[first.stop : last.start]),
        "last third": list(names[last]),
    }
