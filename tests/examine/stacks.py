"""Networks whose gradients are known at the start, because their weights are drawn to a plan."""

from collections.abc import Callable

from torch import nn


def orthogonal(gain: float, depth: int = 12, width: int = 16) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers = [nn.Linear(width, width, bias=False).double() for _ in range(depth)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight, gain)
        return nn.Sequential(*layers)

    return make


def mlp(*between: type[nn.Module], depth: int, width: int, xavier: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        if xavier:
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, *(one(width) if one is nn.BatchNorm1d else one() for one in between)]
    return nn.Sequential(*layers, nn.Linear(width, 10))
