"""Sums of tensors, in as few reads as it takes: what the measures are made of.

Every function returns float64 sums on the device of its tensors; nothing waits for a device. Sums
over several forward passes, or over processes, add up (of `max_abs`, the largest counts).

Each is one read on a CPU, in a compiled kernel (kernel.py). Other devices, types and machines
without a compiler take the same sums with PyTorch, in several reads. On a CUDA device Triton
kernels can do it in one (triton_kernel.py), which were never run on one: GRADFLOW_TRITON=1.
"""

import ctypes
import logging
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from itertools import zip_longest
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from gradflow.record import kernel
from gradflow.record.kernel import Pair

# The order of the sums in what the functions return.
OUTPUT_SUMS = ("n", "sum", "square", "nonzero", "max_abs", "nonfinite")
GRADIENT_SUMS = ("square", "nonfinite")
PRODUCT_SUMS = ("x_square", "y_square", "y_nonfinite", "product", "row_squares")
DIFFERENCE_SUMS = ("square", "changed")
ADAM_SUMS = ("attenuation", "step_square")

PIECE = 2**17  # elements, 512 kB of float32: what PyTorch's reads share in the cache of a CPU

# Sums of float32 squares outside of these lost elements to underflow or overflow.
SMALLEST_SQUARES, LARGEST_SQUARES = 1e-20, 1e37

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
        result = on_cuda.output_sums(*_by_channel(x, channel_dim), relu)
        if result is not None:
            return result
    library = kernel.for_tensor(x)
    if library is None:
        return _output_sums(x, channel_dim, relu)
    x, outer, channels, inner = _by_channel(x, channel_dim)
    sums = torch.empty(12 if relu else 6, dtype=torch.float64)
    active = torch.empty(2 * channels, dtype=torch.uint8)
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
    x = _dense(as_real(grad))
    on_cuda = _triton_for([x])
    if on_cuda is not None:
        result: Tensor | None = on_cuda.gradient_sums(x)
        if result is not None:
            return result
    library = kernel.for_tensor(x)
    if library is None:
        return torch.stack(_square_sum(flatten_dense(x)))
    sums = torch.empty(2, dtype=torch.float64)
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
    dense = [_dense(as_real(x)) for x in xs]
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
    alike = [_alike(x, y) for x, y in zip(xs, ys, strict=True)]
    firsts = [x for x, _ in alike]
    by_kernel = _triton_for(firsts) or all(map(kernel.for_tensor, firsts))  # one call, or none
    pairs = []
    for (one, other), x, copy in zip_longest(alike, xs, copies):
        rows = one.shape[0] if one.dim() > 1 and one.numel() else 1
        if copy is not None and not (by_kernel and _is_copied_by_kernel(one, x, copy)):
            copy.copy_(x)
            copy = None
        pairs.append(Pair(one, other, rows, copy))
    return _of_pairs(pairs, "products", len(PRODUCT_SUMS), _product_sums)


def difference_sums(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """Σ(x − y)² and the number of elements whose bits differ, per pair. Returns (pairs, 2).

    >>> difference_sums([torch.tensor([1.0, 2.0])], [torch.tensor([4.0, 2.0])])
    tensor([[9., 1.]], dtype=torch.float64)
    """
    alike = [_alike(x, y) for x, y in zip(xs, ys, strict=True)]
    pairs = [Pair(x, y, max(x.numel(), 1), None) for x, y in alike]
    return _of_pairs(pairs, "differences", len(DIFFERENCE_SUMS), _difference_sums)


class Moments(NamedTuple):
    """What Adam keeps of one parameter after its n-th step, and with what it was made."""

    first: Tensor  # m
    second: Tensor  # v; under AMSGrad its largest so far
    step: Tensor | float  # n
    betas: tuple[Tensor | float, Tensor | float]
    epsilon: float


def adam_sums(moments: Sequence[Moments]) -> Tensor:
    """Σ √v̂ / (√v̂ + ε) and Σ (m̂ / (√v̂ + ε))² per parameter. Returns (parameters, 2).

    With m̂ = m / (1 − β₁ⁿ) and v̂ = v / (1 − β₂ⁿ), Kingma & Ba 2015, arXiv:1412.6980.

    >>> adam_sums([Moments(torch.tensor([0.1]), torch.tensor([0.001]), 1, (0.9, 0.999), 1.0)])
    tensor([[0.5000, 0.2500]], dtype=torch.float64)
    """
    alike = [_alike(one.first, one.second) for one in moments]
    libraries = [kernel.for_tensor(first) for first, _ in alike]
    library = libraries[0] if libraries and all(libraries) else None
    if library is None:
        rows = [_adam_sums(*pair, one) for pair, one in zip(alike, moments, strict=True)]
        return torch.stack(rows) if rows else torch.empty(0, len(ADAM_SUMS), dtype=torch.float64)
    sums = torch.empty(len(moments), len(ADAM_SUMS), dtype=torch.float64)
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


def dot(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩.

    >>> dot(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor(11., dtype=torch.float64)
    """
    x, y = _alike(x, y)
    pieces = zip(_pieces(flatten_dense(x)), _pieces(flatten_dense(y)), strict=True)
    return torch.stack([torch.dot(a.double(), b.double()) for a, b in pieces]).sum()


def as_real(x: Tensor) -> Tensor:
    """`x` without its graph; complex numbers as twice as many real ones in the last dimension."""
    if x.requires_grad:
        x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
        x = x.flatten(-2) if x.dim() > 1 else x
    if x.is_neg():  # as the imaginary part of a conjugate: its memory holds −x
        x = x.resolve_neg()
    # The compiled kernel does not read float16; the others convert what they read as they read it.
    return x.float() if x.dtype == torch.float16 and not x.is_cuda else x


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


def _alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as real numbers of one type, which lie in memory in one order."""
    x, y = as_real(x), as_real(y)
    if y.dtype != x.dtype:
        wide = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(wide), y.to(wide)
    if y.stride() != x.stride() or not _is_dense(x):
        y = torch.empty_like(x).copy_(y) if _is_dense(x) else y.contiguous()
        x = _dense(x)
    return x, y


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
    sums = torch.empty(len(pairs), n_sums, dtype=torch.float64)
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


def flatten_dense(x: Tensor) -> Tensor:
    """The elements of `x` as one dimension, in memory order, without a copy where x is dense."""
    return x.as_strided((x.numel(),), (1,)) if _is_dense(x) else x.reshape(-1)


def _dense(x: Tensor) -> Tensor:
    return x if _is_dense(x) else x.contiguous()


def _is_dense(x: Tensor) -> bool:
    return (
        x.is_contiguous()
        or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
        or (x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d))
    )


def _by_channel(x: Tensor, channel_dim: int) -> tuple[Tensor, int, int, int]:
    """`x` dense, and how it lies in memory: (outer, channels, inner)."""
    channels = x.shape[channel_dim]
    if channel_dim == 1 and x.dim() == 4:  # by far the most frequent, and the cheapest to see
        is_inside = x.is_contiguous(memory_format=torch.channels_last)
    else:
        is_inside = x.movedim(channel_dim, -1).is_contiguous()
    if is_inside:
        return x, x.numel() // channels, channels, 1
    x = x.contiguous()
    inner = math.prod(x.shape[channel_dim + 1 :])
    return x, x.numel() // (channels * inner), channels, inner


# -- the same sums by PyTorch ------------------------------------------------------------------


def _output_sums(x: Tensor, channel_dim: int, relu: bool) -> tuple[Tensor, Tensor]:
    x = _at_least_float32(x)
    flat = flatten_dense(x)
    n = flat.new_tensor(flat.numel(), dtype=torch.float64)
    highest, lowest = _channel_extremes(x, channel_dim)
    # `ne` into a float buffer and its sum: `count_nonzero` takes 25 times as long on a CPU.
    n_nonzero = torch.ne(flat, 0, out=torch.empty_like(flat)).sum(dtype=torch.float64)
    max_abs = torch.maximum(highest.amax(), -lowest.amin())
    square, n_nonfinite = _square_sum(flat)
    sums = torch.stack([n, _sum(flat, square), square, n_nonzero, max_abs.double(), n_nonfinite])
    active = ((highest != 0) | (lowest != 0)).to(torch.uint8)
    if not relu:
        return sums, active
    second = _output_sums(x.clamp(min=0), channel_dim, relu=False)
    return torch.cat([sums, second[0]]), torch.cat([active, second[1]])


def _product_sums(pair: Pair) -> Tensor:
    x, y = (_at_least_float32(flatten_dense(z)) for z in (pair.x, pair.y))
    if pair.rows == 1:
        x_square = _square_sum(x)[0]
        y_square, y_nonfinite = _square_sum(y)
        return torch.stack([x_square, y_square, y_nonfinite, dot(x, y), x_square * y_square])
    x_rows, y_rows = x.view(pair.rows, -1), y.view(pair.rows, -1)
    x_squares = torch.linalg.vector_norm(x_rows, dim=1, dtype=torch.float64).square()
    y_squares = torch.linalg.vector_norm(y_rows, dim=1, dtype=torch.float64).square()
    y_nonfinite = _count_nonfinite(y, y_squares.sum())
    return torch.stack([
        x_squares.sum(), y_squares.sum(), y_nonfinite, dot(x, y), torch.dot(x_squares, y_squares)
    ])  # fmt: skip


def _difference_sums(pair: Pair) -> Tensor:
    x, y = flatten_dense(pair.x), flatten_dense(pair.y)
    pieces = zip(_pieces(x), _pieces(y), strict=True)
    differences = [a.double() - b.double() for a, b in pieces]
    square = torch.stack([torch.dot(d, d) for d in differences]).sum()
    return torch.stack([square, (_bits(x) != _bits(y)).sum(dtype=torch.float64)])


def _bias_correction(beta: Tensor | float, step: Tensor | float) -> float:
    """1 − βⁿ; NaN before the first step, where a scaler skipped it, for then there is none."""
    return (1 - float(beta) ** float(step)) or math.nan


def _adam_sums(first: Tensor, second: Tensor, moments: Moments) -> Tensor:
    """In float64 piece by piece on a CPU; elsewhere the device may not be asked for the step."""
    n = torch.as_tensor(moments.step, dtype=torch.float64, device=first.device)
    corrections = [1 - beta**n for beta in moments.betas]
    is_cpu = first.device.type == "cpu"
    sums = []
    for m, v in zip(_pieces(flatten_dense(first)), _pieces(flatten_dense(second)), strict=True):
        m, v = (x.double() if is_cpu else _at_least_float32(x) for x in (m, v))
        root = (v / corrections[1]).sqrt_()
        below = root + moments.epsilon
        step = (m / corrections[0]).div_(below)
        square = torch.linalg.vector_norm(step, dtype=torch.float64).square()
        sums.append(torch.stack([(root / below).sum(dtype=torch.float64), square]))
    return torch.stack(sums).sum(0)


def _bits(x: Tensor) -> Tensor:
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.view(integers[x.element_size()])


def _at_least_float32(x: Tensor) -> Tensor:
    """Sums in bfloat16 would be wrong."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _square_sum(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Σx² and the number of non-finite elements."""
    flat = _at_least_float32(flat)
    if flat.device.type != "cpu":
        square = torch.linalg.vector_norm(flat, dtype=torch.float64).square()
        return square, _count_nonfinite(flat, square)
    square = torch.stack([torch.dot(x, x) for x in _pieces(flat)]).sum(dtype=torch.float64)
    if not SMALLEST_SQUARES < square < LARGEST_SQUARES:
        wide = flat.double()
        square = torch.dot(wide, wide)
    return square, _count_nonfinite(flat, square)


def _sum(flat: Tensor, square: Tensor) -> Tensor:
    """Σx. Where the squares are large, float32 may not hold the sum either."""
    if flat.device.type == "cpu" and square < LARGEST_SQUARES:
        return flat.sum().double()
    return flat.sum(dtype=torch.float64)


def _count_nonfinite(flat: Tensor, square: Tensor) -> Tensor:
    # Off a CPU a look at the value would wait for the device.
    if flat.device.type == "cpu" and torch.isfinite(square):
        return torch.zeros((), dtype=torch.float64)
    return (~torch.isfinite(flat)).sum(dtype=torch.float64)


def _pieces(flat: Tensor) -> tuple[Tensor, ...]:
    """On a CPU, pieces that fit its cache. They also keep the sums exact: one float32 `dot` of 6
    million values was off by 9e-5 and `vector_norm` by 3e-4, the sum over pieces by 5e-7.
    """
    return torch.split(flat, PIECE) if flat.device.type == "cpu" and flat.numel() else (flat,)


def _channel_extremes(x: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    """Largest and smallest element of each channel, two vectors of shape (channels,)."""
    if x.dim() == 1:
        return x, x
    last = x.movedim(channel_dim, -1)
    if last.is_contiguous():
        rows = last.flatten(0, -2)
        return rows.amax(0), rows.amin(0)
    others = [dim for dim in range(x.dim()) if dim != channel_dim]
    return x.amax(others), x.amin(others)
