"""Which layers are sites, what kind of layer each is, and which of its outputs to measure."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

_CHANNEL_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm)
_NORMS = (*_CHANNEL_NORMS, nn.LayerNorm)
_ACTIVATIONS = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if name != "MultiheadAttention"
)


def find_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose output is measured: activations, norms, attention, leaves with parameters."""
    for name, module in model.named_modules():
        # torch.nn.utils.parametrize puts a child into a layer, and the weight into the child.
        is_leaf = all(child == "parametrizations" for child, _ in module.named_children())
        has_parameters = is_parametrized(module) or any(True for _ in module.parameters(False))
        if isinstance(module, (*_ACTIVATIONS, *_NORMS, nn.MultiheadAttention)) or (
            is_leaf and has_parameters
        ):
            yield name, module


def kind_of(module: nn.Module) -> str:
    """conv, linear, norm, activation, or other."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
        return "norm"
    if isinstance(module, _ACTIVATIONS):
        return "activation"
    return "other"


def channel_dim(module: nn.Module, output: Tensor, before: int | None) -> int:
    """Which dimension of an output counts channels.

    1 for what convolves or normalises over space, the last for what acts on the last. The rest,
    such as activations, keeps the dimension of the layer `before` it; with none before, it is 1,
    and the last of three: (N, T, C).
    """
    last = output.dim() - 1
    if isinstance(module, (nn.modules.conv._ConvNd, *_CHANNEL_NORMS)):
        return 1
    if isinstance(module, (nn.Linear, nn.LayerNorm, nn.RNNBase, nn.MultiheadAttention)):
        return last
    if before is not None and before <= last:
        return before
    return last if output.dim() == 3 else 1


def first_floating_tensor(output: object) -> Tensor | None:
    """The tensor to measure in what a module returned."""
    return next(floating_tensors(output), None)


def floating_tensors(output: object) -> Iterator[Tensor]:
    """Those in what a module returned: LSTMs give tuples, other models dicts."""
    if isinstance(output, Tensor):
        measurable = output.is_floating_point() or output.is_complex()
        if measurable and output.numel():
            yield output
        return
    parts: Any = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (tuple, list)):
        parts = output
    elif is_dataclass(output):
        parts = vars(output).values()
    for part in parts:
        yield from floating_tensors(part)
