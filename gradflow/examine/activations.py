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
