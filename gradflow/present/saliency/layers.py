"""Where Grad-CAM is taken: the last block whose maps are fine enough to point at something."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Grad-CAM's map is as fine as the layer it is taken at. 7 x 7 is what a ResNet's last stage has at
# 224 pixels; on smaller images that stage has 1 to 4 pixels a side, too few to point at anything.
SMALLEST_MAP = 7


def gradcam_layer(model: nn.Module, image: Tensor) -> tuple[str, nn.Module]:
    """The name and module that Grad-CAM is taken at: the last block with a map of 7 x 7 or more.

    A block is a module made of others, no plain sequence, that returns feature maps (1, C, S, S),
    such as a residual block. Where no block has a map that large, the convolutions and ReLUs are
    searched; where no layer has, it is the last block (or layer) with the largest map. Modules
    that are called more than once are left out: their map would be that of the last call only.
    Raises ValueError for a network without feature maps.
    """
    sizes = _map_sizes(model, image)
    modules = {name: model.get_submodule(name) for name in sizes}
    blocks = [name for name in sizes if _is_block(modules[name])]
    layers = [name for name in sizes if isinstance(modules[name], nn.Conv2d | nn.ReLU)]
    for names in (blocks, layers):
        large = [name for name in names if sizes[name] >= SMALLEST_MAP]
        if large:
            return large[-1], modules[large[-1]]
    if not blocks and not layers:
        raise ValueError(
            "Expected a network with square feature maps (1, C, S, S), but got one without. "
            "Use the method `gradient`, which needs none."
        )
    last_first = reversed(blocks or layers)
    name = max(last_first, key=sizes.__getitem__)
    return name, modules[name]


def _map_sizes(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Name -> side of its feature maps (1, C, S, S), of modules called once, as they finish."""
    calls: list[tuple[str, int | None]] = []
    hooks: list[RemovableHandle] = []

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, output: calls.append((name, _side(output)))

    try:
        for name, module in model.named_modules():
            hooks.append(module.register_forward_hook(keep(name)))
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    n_calls = Counter(name for name, _ in calls)
    return {name: side for name, side in calls if side is not None and n_calls[name] == 1}


def _side(output: object) -> int | None:
    """Only square maps count: channels-last ones, (1, S, S, C), are not read as maps."""
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2] != output.shape[3]:
        return None
    return int(output.shape[2])


def _is_block(module: nn.Module) -> bool:
    return type(module) is not nn.Sequential and any(True for _ in module.children())
