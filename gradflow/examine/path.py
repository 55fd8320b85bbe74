"""The weight layers of a network from input to output, and parts of that way."""

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from gradflow.analysis.layers import PROJECTION
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


# -- reset -----------------------------------------------------------------------------------------


def reset_layers(
    model: nn.Module, initial_state: Mapping[str, Tensor], layers: Collection[str]
) -> nn.Module:
    """A copy of `model` in which the named `path_layers` are as they were in `initial_state`.

    With a layer goes all that is defined after it and before the next layer of the path: its norm,
    and in a residual network the projection of the block that it ends. So the first k layers go
    back together with everything beside them. Recalibrate BatchNorm before evaluating: running
    statistics of other weights would pass for something forgotten.

    Where the loss hardly rises, the layers need not have learned. Zhang, Bengio & Singer, "Are all
    layers created equal?", JMLR 2022, https://arxiv.org/abs/1902.01996. Raises ValueError for a
    layer that is not on the path, or that `initial_state` lacks.
    """
    path = path_layers(model)
    unknown = [layer for layer in layers if layer not in path]
    if unknown:
        raise ValueError(
            f"Expected layers of the path, but got {unknown[0]!r}. `path_layers` lists them."
        )
    model = copy.deepcopy(model)
    state = model.state_dict()
    names = belonging(model, layers)
    missing = [name for name in names if name not in initial_state]
    if missing:
        raise ValueError(
            f"Expected an initial value for {missing[0]}, but `initial_state` has none. "
            "Give the state_dict of the same network before training."
        )
    with torch.no_grad():
        for name in names:
            state[name].copy_(initial_state[name])  # what a state_dict holds is the model's own
    return model
