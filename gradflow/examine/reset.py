"""Reset: what does the network lose when some of its layers forget what they learned?"""

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from gradflow.examine.path import belonging, path_layers


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
