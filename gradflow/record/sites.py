"""Which layers are sites, what kind of layer each is, and which of its outputs to measure."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

_Conv = nn.modules.conv._ConvNd
_CHANNEL_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LocalResponseNorm)
_LAST_NORMS = (nn.LayerNorm, nn.RMSNorm)
_NORMS = (*_CHANNEL_NORMS, *_LAST_NORMS)
# What they make or mix is the last dimension, whatever stands before it.
_LAST = (
    nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase,
    nn.MultiheadAttention,
)  # fmt: skip
# Instance norms also take inputs without a batch.
_SPATIAL_NORMS = {
    nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3,
    nn.LazyInstanceNorm1d: 1, nn.LazyInstanceNorm2d: 2, nn.LazyInstanceNorm3d: 3,
}  # fmt: skip
_ACTIVATIONS = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if name != "MultiheadAttention"
)


def find_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose output is measured: activations, norms, attention, and every module with
    parameters of its own, whether it has children or not. Scripted modules take no hook.
    """
    for name, module in model.named_modules():
        if isinstance(module, (torch.jit.ScriptModule, ParametrizationList)):
            continue  # the second gives a weight, not an output
        # torch.nn.utils.parametrize puts the weight of a layer into a child.
        has_parameters = is_parametrized(module) or any(True for _ in module.parameters(False))
        if has_parameters or isinstance(module, (*_ACTIVATIONS, *_NORMS, nn.MultiheadAttention)):
            yield name, module


def kind_of(module: nn.Module) -> str:
    """conv, linear, norm, activation, or other."""
    if isinstance(module, _Conv):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
        return "norm"
    if isinstance(module, _ACTIVATIONS):
        return "activation"
    return "other"


# -- channels ----------------------------------------------------------------------------------


class Channels:
    """Which dimension of an output counts channels, layer after layer of one forward pass.

    The type of a layer says it, with and without a batch: of a convolution it is the one before
    those of space, of a norm over channels dimension 1, of what acts on the last dimension the
    last. The others, such as activations, keep that of the layer before them. Where nothing is
    known it is 1, and the last of three: (N, T, C).
    """

    def __init__(self) -> None:
        self._dim = self._size = -1

    def dim_of(self, module: nn.Module, output: Tensor) -> int:
        """Of an output of at least two dimensions."""
        dim = _dim_by_type(module, output)
        if dim is None:
            dim = self._as_before(output)
        self._dim, self._size = dim, output.shape[dim]
        return dim

    def _as_before(self, output: Tensor) -> int:
        n_dims = output.dim()
        if 0 <= self._dim < n_dims and output.shape[self._dim] == self._size:
            return self._dim
        same = [dim for dim in range(n_dims) if output.shape[dim] == self._size]
        if len(same) == 1:  # moved, as where patches become a sequence
            return same[0]
        if 0 <= self._dim < n_dims:
            return self._dim
        return n_dims - 1 if n_dims == 3 else 1


def _dim_by_type(module: nn.Module, output: Tensor) -> int | None:
    n_dims = output.dim()
    if isinstance(module, _Conv):
        return max(n_dims - 1 - len(module.kernel_size), 0)
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return max(n_dims - 1 - _SPATIAL_NORMS.get(type(module), n_dims - 2), 0)
    if isinstance(module, nn.Softmax2d):
        return n_dims - 3
    if isinstance(module, _CHANNEL_NORMS):
        return 1
    if isinstance(module, nn.PReLU):
        return 1 if module.num_parameters > 1 else None
    if isinstance(module, _LAST_NORMS):
        return _dim_of_last_norm(module, output)
    return n_dims - 1 if isinstance(module, _LAST) else None


def _dim_of_last_norm(module: nn.LayerNorm | nn.RMSNorm, output: Tensor) -> int:
    """The last; but a subclass such as torchvision's LayerNorm2d turns (N, C, H, W) and back."""
    is_own = type(module) not in _LAST_NORMS and output.dim() == 4
    if is_own and output.shape[1] == module.normalized_shape[-1]:
        is_last_too = output.shape[-1] == module.normalized_shape[-1]
        return 1 if not is_last_too or "2d" in type(module).__name__.lower() else 3
    return output.dim() - 1


# -- outputs -----------------------------------------------------------------------------------


def first_floating_tensor(output: object) -> Tensor | None:
    """The tensor to measure in what a module returned."""
    if type(output) is Tensor and output.is_floating_point() and output.numel():
        return output
    return next(floating_tensors(output), None)


def floating_tensors(output: object) -> Iterator[Tensor]:
    """Those in what a module returned: LSTMs give tuples, other models dicts."""
    if isinstance(output, Tensor):
        measurable = output.is_floating_point() or output.is_complex()
        if measurable and output.numel():
            yield output
        return
    for part in _parts(output) or ():
        yield from floating_tensors(part)


def unknown_type(output: object) -> str | None:
    """The name of a type in `output` that may hold tensors but is not looked into; else None."""
    if output is None or isinstance(output, (Tensor, str, bytes, bool, int, float, complex)):
        return None
    parts = _parts(output)
    if parts is None:
        return type(output).__name__
    return next((name for part in parts if (name := unknown_type(part))), None)


def _parts(output: object) -> list[object] | None:
    """What a container holds; None of what is no container that is known, as a generator."""
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, (tuple, list)):
        return list(output)
    if is_dataclass(output) and not isinstance(output, type):
        return [getattr(output, field.name, None) for field in fields(output)]
    return None
