"""Dead channels: those that no image can switch on, so that no gradient passes them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gradflow.examine.activations import RELU, watch_activations


def dead_channels(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, tuple[int, int]]:
    """(dead, all) channels of each ReLU: dead are those whose input is ≤ 0 everywhere.

    Everywhere is at each position of each image in `batches`, of shape (B, …). What decides is the
    input, the output of the norm or layer before; it is read off the output, which is 0 just where
    the input is not positive. A NaN is not dead. Channels are dimension 1.

    In eval mode: give a model whose BatchNorm is recalibrated, lest its running statistics pass
    for dead channels. By site, see `watch_activations`; other activations than ReLU do not die.
    Lu et al. 2019, "Dying ReLU and Initialization", https://arxiv.org/abs/1903.06733
    """
    largest: dict[str, Tensor] = {}

    def see(site: str, output: Tensor) -> None:
        top = output.transpose(0, 1).flatten(1).amax(1)
        largest[site] = torch.maximum(largest[site], top) if site in largest else top

    watch_activations(model, batches, see, RELU)
    return {site: (int((top <= 0).sum()), len(top)) for site, top in largest.items()}


def by_stage(dead: dict[str, tuple[int, int]]) -> dict[str, list[int]]:
    """Sums over the sites of one stage, the first part of a site's name.

    >>> by_stage({"relu": (0, 4), "layer1.0.relu1": (1, 4), "layer1.0.relu2": (2, 4)})
    {'relu': [0, 4], 'layer1': [3, 8]}
    """
    stages: dict[str, list[int]] = {}
    for site, (n_dead, n_channels) in dead.items():
        total = stages.setdefault(site.split(".")[0], [0, 0])
        total[0] += n_dead
        total[1] += n_channels
    return stages
