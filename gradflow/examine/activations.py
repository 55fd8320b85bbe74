"""The outputs of a network's activations, be they modules, in place, or functions."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradflow.examine.noise import in_mode
from gradflow.record.steps import Site

RELU = ("relu", "relu_")
# ReLU6 is a hardtanh, SELU an elu. Sigmoid and tanh are left out: they serve as gates as well.
ACTIVATIONS = tuple(
    name + ending
    for name in ("relu", "leaky_relu", "hardtanh", "elu", "gelu", "silu", "mish", "hardswish")
    for ending in ("", "_")
)

See = Callable[[str, Tensor], None]


@torch.no_grad()
def watch_activations(
    model: nn.Module, batches: Iterable[Tensor], see: See, operations: Sequence[str] = ACTIVATIONS
) -> None:
    """Run `model` in eval mode over image batches; show `see` each activation's site and output.

    Sites are named after the innermost module that computes them, as in records: the second
    activation of one module is "name#1". Torch's operations are watched and not modules, because
    torchvision's blocks call one in-place ReLU twice and its DenseNets call a function. An output
    in place is changed by later layers: read it when it is seen. The model is left as it was.
    """
    with in_mode(model, training=False), _innermost_module(model) as stack:
        for images in batches:
            with _Watch(see, operations, stack):
                model(images)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, see: See, operations: Sequence[str], stack: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see, self._operations, self._stack = see, operations, stack
        self._calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self._operations:
            name = self._stack[-1]
            self._see(str(Site(name, self._calls[name])), output)
            self._calls[name] += 1
        return output


@contextmanager
def _innermost_module(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that run, outermost first; hooks are gone afterwards."""
    stack: list[str] = [""]
    handles = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave))
        yield stack
    finally:
        for handle in handles:
            handle.remove()


# -- dead channels ---------------------------------------------------------------------------------


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
