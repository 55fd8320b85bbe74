"""The weight layers of a network from input to output, and parts of that way."""

from collections.abc import Sequence

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
