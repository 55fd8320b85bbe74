"""The sums of sums.py by PyTorch, in several reads: for devices and types that no kernel reads."""

from typing import NamedTuple

import torch
from torch import Tensor

from gradflow.record.kernel import Pair
from gradflow.record.memory import as_alike, flatten_dense

PIECE = 2**17  # elements, 512 kB of float32: what PyTorch's reads share in the cache of a CPU

# Sums of float32 squares outside of these lost elements to underflow or overflow.
SMALLEST_SQUARES, LARGEST_SQUARES = 1e-20, 1e37


class Moments(NamedTuple):
    """What Adam keeps of one parameter after its n-th step, and with what it was made."""

    first: Tensor  # m
    second: Tensor  # v; under AMSGrad its largest so far
    step: Tensor | float  # n
    betas: tuple[Tensor | float, Tensor | float]
    epsilon: float


def dot(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩.

    >>> dot(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor(11., dtype=torch.float64)
    """
    x, y = as_alike(x, y)
    pieces = zip(_pieces(flatten_dense(x)), _pieces(flatten_dense(y)), strict=True)
    return torch.stack([torch.dot(a.double(), b.double()) for a, b in pieces]).sum()


def output_sums(x: Tensor, channel_dim: int, relu: bool) -> tuple[Tensor, Tensor]:
    x = _at_least_float32(x)
    flat = flatten_dense(x)
    n = flat.new_tensor(flat.numel(), dtype=torch.float64)
    highest, lowest = _channel_extremes(x, channel_dim)
    # `ne` into a float buffer and its sum: `count_nonzero` takes 25 times as long on a CPU.
    n_nonzero = torch.ne(flat, 0, out=torch.empty_like(flat)).sum(dtype=torch.float64)
    max_abs = torch.maximum(highest.amax(), -lowest.amin())
    square, n_nonfinite = square_sum(flat)
    sums = torch.stack([n, _sum(flat, square), square, n_nonzero, max_abs.double(), n_nonfinite])
    active = ((highest != 0) | (lowest != 0)).to(torch.uint8)
    if not relu:
        return sums, active
    second = output_sums(x.clamp(min=0), channel_dim, relu=False)
    return torch.cat([sums, second[0]]), torch.cat([active, second[1]])


def product_sums(pair: Pair) -> Tensor:
    x, y = (_at_least_float32(flatten_dense(z)) for z in (pair.x, pair.y))
    if pair.rows == 1:
        x_square = square_sum(x)[0]
        y_square, y_nonfinite = square_sum(y)
        return torch.stack([x_square, y_square, y_nonfinite, dot(x, y), x_square * y_square])
    x_rows, y_rows = x.view(pair.rows, -1), y.view(pair.rows, -1)
    x_squares = torch.linalg.vector_norm(x_rows, dim=1, dtype=torch.float64).square()
    y_squares = torch.linalg.vector_norm(y_rows, dim=1, dtype=torch.float64).square()
    y_nonfinite = _count_nonfinite(y, y_squares.sum())
    return torch.stack([
        x_squares.sum(), y_squares.sum(), y_nonfinite, dot(x, y), torch.dot(x_squares, y_squares)
    ])  # fmt: skip


def difference_sums(pair: Pair) -> Tensor:
    x, y = flatten_dense(pair.x), flatten_dense(pair.y)
    pieces = zip(_pieces(x), _pieces(y), strict=True)
    differences = [a.double() - b.double() for a, b in pieces]
    square = torch.stack([torch.dot(d, d) for d in differences]).sum()
    return torch.stack([square, (_bits(x) != _bits(y)).sum(dtype=torch.float64)])


def adam_sums(first: Tensor, second: Tensor, moments: Moments) -> Tensor:
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


def square_sum(flat: Tensor) -> tuple[Tensor, Tensor]:
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
        return flat.new_zeros((), dtype=torch.float64)
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
