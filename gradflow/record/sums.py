"""Sums of tensors, in as few reads as it takes: what the measures are made of.

Every function returns float64 sums on the device of its tensors; nothing waits for a device. Sums
over several forward passes, or over processes, add up (of `max_abs`, the largest counts).

Each is one read on a CPU, in a compiled kernel (kernel.py). Other devices, types and machines
without a compiler take the same sums with PyTorch, in several reads (torch_sums.py). On a CUDA
device Triton kernels can do it in one (triton_kernel.py), which were never run on one:
GRADFLOW_TRITON=1.
"""

import ctypes
import logging
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from itertools import zip_longest
from types import ModuleType

import torch
from torch import Tensor

from gradflow.record import kernel, torch_sums
from gradflow.record.kernel import Pair
from gradflow.record.memory import HOST, as_alike, as_dense, as_real, by_channel, flatten_dense
from gradflow.record.torch_sums import Moments

# The order of the sums in what the functions return.
OUTPUT_SUMS = ("n", "sum", "square", "nonzero", "max_abs", "nonfinite")
GRADIENT_SUMS = ("square", "nonfinite")
PRODUCT_SUMS = ("x_square", "y_square", "y_nonfinite", "product", "row_squares")
DIFFERENCE_SUMS = ("square", "changed")
ADAM_SUMS = ("attenuation", "step_square")

_log = logging.getLogger("gradflow")


def output_sums(output: Tensor, channel_dim: int, *, relu: bool = False) -> tuple[Tensor, Tensor]:
    """The six sums of a layer's output, and which of its channels are active: z ≠ 0 somewhere.

    With `relu` both hold a second half, that of max(z, 0), from the same read. `output` has at
    least one element and one dimension.

    >>> sums, active = output_sums(torch.tensor([[3.0, 0.0], [-4.0, 0.0]]), channel_dim=1)
    >>> dict(zip(OUTPUT_SUMS, sums.tolist()))
    {'n': 4.0, 'sum': -1.0, 'square': 25.0, 'nonzero': 2.0, 'max_abs': 4.0, 'nonfinite': 0.0}
    >>> active
    tensor([1, 0], dtype=torch.uint8)
    """
    x = as_real(output)
    channel_dim %= x.dim()
    on_cuda = _triton_for([x])
    if on_cuda is not None:
        result: tuple[Tensor, Tensor] | None
        result = on_cuda.output_sums(*by_channel(x, channel_dim), relu)
        if result is not None:
            return result
    library = kernel.for_tensor(x)
    if library is None:
        return torch_sums.output_sums(x, channel_dim, relu)
    x, outer, channels, inner = by_channel(x, channel_dim)
    sums = torch.empty(12 if relu else 6, dtype=torch.float64, device=HOST)
    active = torch.empty(2 * channels, dtype=torch.uint8, device=HOST)
    library.gradflow_output(
        x.dtype == torch.bfloat16, x.data_ptr(), outer, channels, inner, relu,
        torch.get_num_threads(), sums.data_ptr(), active.data_ptr(),
    )  # fmt: skip
    return sums, active if relu else active[:channels]


def gradient_sums(grad: Tensor) -> Tensor:
    """Σg² and the number of non-finite elements.

    >>> gradient_sums(torch.tensor([3.0, -4.0]))
    tensor([25.,  0.], dtype=torch.float64)
    """
    x = as_dense(as_real(grad))
    on_cuda = _triton_for([x])
    if on_cuda is not None:
        result: Tensor | None = on_cuda.gradient_sums(x)
        if result is not None:
            return result
    library = kernel.for_tensor(x)
    if library is None:
        return torch.stack(torch_sums.square_sum(flatten_dense(x)))
    sums = torch.empty(2, dtype=torch.float64, device=HOST)
    library.gradflow_gradient(
        x.dtype == torch.bfloat16, x.data_ptr(), x.numel(),
        torch.get_num_threads(), sums.data_ptr(),
    )  # fmt: skip
    return sums


def square_sums(xs: Sequence[Tensor]) -> Tensor:
    """`gradient_sums` of each tensor, in one call. Returns (tensors, 2).

    >>> square_sums([torch.tensor([3.0, -4.0]), torch.ones(2)])
    tensor([[25.,  0.],
            [ 2.,  0.]], dtype=torch.float64)
    """
    dense = [as_dense(as_real(x)) for x in xs]
    pairs = [Pair(x, x, max(x.numel(), 1), None) for x in dense]
    return _of_pairs(pairs, "squares", len(GRADIENT_SUMS), lambda pair: gradient_sums(pair.x))


def product_sums(
    xs: Sequence[Tensor], ys: Sequence[Tensor], copies: Sequence[Tensor | None] = ()
) -> Tensor:
    """Σx², Σy², non-finite elements of y, ⟨x, y⟩, and Σ over rows r of ‖x_r‖² ‖y_r‖², per pair.

    Rows are the slices of the first dimension: the filters of a weight. A vector is one row.
    Where there is a copy, it becomes a copy of x. Returns (pairs, 5).

    >>> product_sums([torch.tensor([[1.0], [2.0]])], [torch.tensor([[3.0], [-4.0]])])
    tensor([[ 5., 25.,  0., -5., 73.]], dtype=torch.float64)
    """
    alike = [as_alike(x, y) for x, y in zip(xs, ys, strict=True)]
    firsts = [x for x, _ in alike]
    by_kernel = _triton_for(firsts) or all(map(kernel.for_tensor, firsts))  # one call, or none
    pairs = []
    for (one, other), x, copy in zip_longest(alike, xs, copies):
        rows = one.shape[0] if one.dim() > 1 and one.numel() else 1
        if copy is not None and not (by_kernel and _is_copied_by_kernel(one, x, copy)):
            copy.copy_(x)
            copy = None
        pairs.append(Pair(one, other, rows, copy))
    return _of_pairs(pairs, "products", len(PRODUCT_SUMS), torch_sums.product_sums)


def difference_sums(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """Σ(x − y)² and the number of elements whose bits differ, per pair. Returns (pairs, 2).

    >>> difference_sums([torch.tensor([1.0, 2.0])], [torch.tensor([4.0, 2.0])])
    tensor([[9., 1.]], dtype=torch.float64)
    """
    alike = [as_alike(x, y) for x, y in zip(xs, ys, strict=True)]
    pairs = [Pair(x, y, max(x.numel(), 1), None) for x, y in alike]
    return _of_pairs(pairs, "differences", len(DIFFERENCE_SUMS), torch_sums.difference_sums)


def adam_sums(moments: Sequence[Moments]) -> Tensor:
    """Σ √v̂ / (√v̂ + ε) and Σ (m̂ / (√v̂ + ε))² per parameter. Returns (parameters, 2).

    With m̂ = m / (1 − β₁ⁿ) and v̂ = v / (1 − β₂ⁿ), Kingma & Ba 2015, arXiv:1412.6980.

    >>> adam_sums([Moments(torch.tensor([0.1]), torch.tensor([0.001]), 1, (0.9, 0.999), 1.0)])
    tensor([[0.5000, 0.2500]], dtype=torch.float64)
    """
    alike = [as_alike(one.first, one.second) for one in moments]
    libraries = [kernel.for_tensor(first) for first, _ in alike]
    library = libraries[0] if libraries and all(libraries) else None
    if library is None:
        rows = [torch_sums.adam_sums(*pair, one) for pair, one in zip(alike, moments, strict=True)]
        none = torch.empty(0, len(ADAM_SUMS), dtype=torch.float64, device=HOST)
        return torch.stack(rows) if rows else none
    sums = torch.empty(len(moments), len(ADAM_SUMS), dtype=torch.float64, device=HOST)
    array = (kernel.AdamMoments * len(moments))(*(
        kernel.AdamMoments(
            m.dtype == torch.bfloat16, m.data_ptr(), v.data_ptr(), m.numel(),
            1 / _bias_correction(one.betas[0], one.step),
            _bias_correction(one.betas[1], one.step) ** -0.5,
            one.epsilon,
        )
        for (m, v), one in zip(alike, moments, strict=True)
    ))  # fmt: skip
    library.gradflow_adam(array, len(array), torch.get_num_threads(), sums.data_ptr())
    return sums


def _triton_for(xs: Sequence[Tensor]) -> ModuleType | None:
    """The Triton kernels if they read all of the tensors."""
    if not xs or not xs[0].is_cuda:
        return None
    module = _triton()
    return module if module is not None and module.reads(xs) else None


@cache
def _triton() -> ModuleType | None:
    """The Triton kernels where GRADFLOW_TRITON=1 asks for them and they can be imported."""
    if os.environ.get("GRADFLOW_TRITON") != "1":
        return None
    try:
        from gradflow.record import triton_kernel
    except Exception as error:  # not installed, or not for this machine
        _log.warning("gradflow takes its sums with PyTorch, since it has no Triton: %s", error)
        return None
    return triton_kernel


def _is_copied_by_kernel(x: Tensor, original: Tensor, copy: Tensor) -> bool:
    return (
        x.data_ptr() == original.data_ptr()
        and copy.stride() == original.stride()
        and copy.dtype == original.dtype
    )


def _of_pairs(
    pairs: Sequence[Pair], name: str, n_sums: int, by_torch: Callable[[Pair], Tensor]
) -> Tensor:
    """(pairs, n_sums), in one call of the kernel where it reads them all."""
    on_cuda = _triton_for([pair.x for pair in pairs])
    if on_cuda is not None:
        result: Tensor | None = getattr(on_cuda, name)(pairs)
        if result is not None:
            return result
    libraries = [kernel.for_tensor(pair.x) for pair in pairs]
    if not all(libraries):
        for pair in pairs:  # where a kernel that would have made the copies has failed
            if pair.copy is not None:
                as_real(pair.copy).copy_(pair.x)
        return torch.stack([by_torch(pair) for pair in pairs])
    sums = torch.empty(len(pairs), n_sums, dtype=torch.float64, device=HOST)
    if pairs:
        numbers = [
            number
            for x, y, rows, copy in pairs
            for number in (
                x.dtype == torch.bfloat16, x.data_ptr(), y.data_ptr(),
                0 if copy is None else copy.data_ptr(), rows, x.numel() // rows,
            )
        ]  # fmt: skip
        array = (ctypes.c_int64 * len(numbers))(*numbers)
        function = getattr(libraries[0], f"gradflow_{name}")
        function(array, len(pairs), torch.get_num_threads(), sums.data_ptr())
    return sums


def _bias_correction(beta: Tensor | float, step: Tensor | float) -> float:
    """1 − βⁿ; NaN before the first step, where a scaler skipped it, for then there is none."""
    return (1 - float(beta) ** float(step)) or math.nan
