"""Measures: pure functions of tensors, in as few reads of the data as it takes.

A step may hold several forward passes (gradient accumulation). What is taken on the device are
therefore sums, which add up over the passes; `finish_*` turns them into measures on the host, in
float64. `MEASURES` says what each measure means; n is the number of elements, z an output, w a
parameter, g = ∂L/∂z or ∂L/∂w.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Measure:
    """What a number means. `of` says where it is taken: an output, its gradient, a parameter."""

    of: str
    formula: str
    unit: str


MEASURES: dict[str, Measure] = {
    "output_mean": Measure("output", "Σz / n", "activation"),
    "output_rms": Measure("output", "√(Σz² / n)", "activation"),
    "output_zero_fraction": Measure("output", "share of elements with z = 0", "1"),
    "output_dead_fraction": Measure(
        "output", "share of channels with z = 0 everywhere in the batch", "1"
    ),
    "output_max_abs": Measure("output", "max |z|", "activation"),
    "output_nonfinite": Measure("output", "number of NaN and ±inf in z", "elements"),
    "output_grad_norm": Measure("output gradient", "‖∂L/∂z‖₂", "loss / activation"),
    "output_grad_rms": Measure("output gradient", "‖∂L/∂z‖₂ / √n", "loss / activation"),
    "output_grad_nonfinite": Measure("output gradient", "number of NaN and ±inf", "elements"),
    "weight_norm": Measure("parameter", "‖w‖₂ before the step", "weight"),
    "grad_norm": Measure("parameter", "‖∂L/∂w‖₂ as the optimizer receives it", "loss / weight"),
    "grad_nonfinite": Measure("parameter", "number of NaN and ±inf in ∂L/∂w", "elements"),
    "grad_dot_weight": Measure("parameter", "⟨∂L/∂w, w⟩", "loss"),
    "update_norm": Measure("parameter", "‖w_after − w_before‖₂", "weight"),
}

# The order of the sums in the vectors that the functions below return and `finish_*` reads.
#   output:    Σz, Σz², number of z ≠ 0, dead channels, max |z|, non-finite
#   gradient:  Σg², non-finite
#   parameter: Σw², Σg², non-finite in g, ⟨g, w⟩

PIECE = 2**17  # elements, 512 kB of float32


def output_sums(output: Tensor, channel_dim: int) -> Tensor:
    """The six sums of one layer output, as one float32 vector on its device.

    >>> output_sums(torch.tensor([[3.0, 0.0], [-4.0, 0.0]]), channel_dim=1)
    tensor([-1., 25.,  2.,  1.,  4.,  0.])
    """
    x = as_float(output)
    flat = flatten_dense(x)
    # `ne` into a float buffer and its sum: `count_nonzero` takes 25 times as long on a CPU.
    n_nonzero = torch.ne(flat, 0, out=torch.empty_like(flat)).sum()
    highest, lowest = _channel_extremes(x, channel_dim)
    n_dead = ((highest == 0) & (lowest == 0)).sum()
    max_abs = torch.maximum(highest.amax(), -lowest.amin())
    square_sum, n_nonfinite = _square_sum(flat)
    return _stack(flat.sum(), square_sum, n_nonzero, n_dead, max_abs, n_nonfinite)


def gradient_sums(grad: Tensor) -> Tensor:
    """Σg² and the number of non-finite elements of one gradient.

    >>> gradient_sums(torch.tensor([3.0, -4.0]))
    tensor([25.,  0.])
    """
    return _stack(*_square_sum(flatten_dense(as_float(grad))))


def parameter_sums(weight: Tensor, grad: Tensor | None) -> Tensor:
    """The four sums of one parameter; those of its gradient are NaN where it has none.

    >>> parameter_sums(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0]))
    tensor([ 5., 25.,  0., -5.])
    >>> parameter_sums(torch.tensor([1.0, 2.0]), None)
    tensor([5., nan, nan, nan])
    """
    w = as_float(weight)
    if grad is None:
        weight_square = _square_sum(flatten_dense(w))[0]
        nan = torch.full_like(weight_square, torch.nan)
        return _stack(weight_square, nan, nan, nan)
    g = as_float(grad.to_dense() if grad.is_sparse else grad).to(w.dtype)
    if g.stride() != w.stride():
        g = torch.empty_like(w).copy_(g)
    flat_w, flat_g = flatten_dense(w), flatten_dense(g)
    # Piece by piece, so that both tensors come from memory once and not once per sum.
    dots = [
        torch.dot(*pair)
        for x, y in zip(_pieces(flat_w), _pieces(flat_g), strict=True)
        for pair in ((x, x), (y, y), (x, y))
    ]
    sums = torch.stack(dots).view(-1, 3).sum(0)
    grad_square, n_nonfinite = _checked(sums[1], flat_g)
    return _stack(sums[0], grad_square, n_nonfinite, sums[2])


def update_square_sum(after: Tensor, before: Tensor) -> Tensor:
    """Σ(after − before)², as a scalar on the device; both with the same memory layout.

    >>> update_square_sum(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0]))
    tensor(25.)
    """
    pairs = zip(
        _pieces(flatten_dense(as_float(after))),
        _pieces(flatten_dense(as_float(before))),
        strict=True,
    )
    differences = (x - y for x, y in pairs)
    return torch.stack([torch.dot(d, d) for d in differences]).sum()


def finish_output(sums: np.ndarray, n: np.ndarray, n_channels: np.ndarray) -> dict[str, float]:
    """Measures of one site from its forward passes: `sums` (passes, 6), `n` (passes,)."""
    total, square, nonzero, dead = sums[:, :4].sum(axis=0)
    return {
        "output_mean": total / n.sum(),
        "output_rms": np.sqrt(square / n.sum()),
        "output_zero_fraction": 1 - nonzero / n.sum(),
        "output_dead_fraction": dead / n_channels.sum(),
        "output_max_abs": sums[:, 4].max(),
        "output_nonfinite": sums[:, 5].sum(),
    }


def finish_gradient(sums: np.ndarray, n: np.ndarray) -> dict[str, float]:
    """Measures of one site's output gradient: `sums` (passes, 2), `n` (passes,)."""
    square, n_nonfinite = sums.sum(axis=0)
    return {
        "output_grad_norm": np.sqrt(square),
        "output_grad_rms": np.sqrt(square / n.sum()),
        "output_grad_nonfinite": n_nonfinite,
    }


def finish_parameter(sums: np.ndarray, update_square: float) -> dict[str, float]:
    """Measures of one parameter from its four sums and the squared norm of its update."""
    weight_square, grad_square, n_nonfinite, dot = sums
    return {
        "weight_norm": np.sqrt(weight_square),
        "grad_norm": np.sqrt(grad_square),
        "grad_nonfinite": n_nonfinite,
        "grad_dot_weight": dot,
        "update_norm": np.sqrt(update_square),
    }


def as_float(x: Tensor) -> Tensor:
    """`x` without its graph, as real numbers of at least float32: sums in bf16 would be wrong."""
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def flatten_dense(x: Tensor) -> Tensor:
    """The elements of `x` as one dimension, in memory order, without a copy where x is dense."""
    dense = (
        x.is_contiguous()
        or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
        or (x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d))
    )
    return x.as_strided((x.numel(),), (1,)) if dense else x.reshape(-1)


def _square_sum(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Σx² and the number of non-finite elements."""
    return _checked(torch.stack([torch.dot(x, x) for x in _pieces(flat)]).sum(), flat)


def _checked(square_sum: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """`square_sum`, mended where only float32 overflowed, and the number of non-finite elements."""
    if flat.device.type != "cpu":  # elsewhere a look at the value would wait for the device
        return square_sum, (~torch.isfinite(flat)).sum()
    if torch.isfinite(square_sum):
        return square_sum, torch.zeros(())
    wide = flat.double()  # a NaN, an inf, or finite values whose squares overflow float32
    return torch.dot(wide, wide), (~torch.isfinite(flat)).sum()


def _pieces(flat: Tensor) -> tuple[Tensor, ...]:
    """On a CPU, pieces that fit its cache. They also keep the sums exact: one float32 `dot` of 6
    million values was off by 9e-5 and `vector_norm` by 3e-4, the sum over pieces by 5e-7.
    """
    return torch.split(flat, PIECE) if flat.device.type == "cpu" else (flat,)


def _channel_extremes(x: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    """Largest and smallest element of each channel, two vectors of shape (channels,)."""
    last = x.movedim(channel_dim, -1)
    if last.is_contiguous():
        rows = last.flatten(0, -2)
        return rows.amax(0), rows.amin(0)
    others = [dim for dim in range(x.dim()) if dim != channel_dim % x.dim()]
    return x.amax(others), x.amin(others)


def _stack(*scalars: Tensor) -> Tensor:
    """One vector; float64 where a sum of squares needed it, else float32."""
    wide = any(scalar.dtype == torch.float64 for scalar in scalars)
    dtype = torch.float64 if wide else torch.float32
    return torch.stack([scalar.to(dtype) for scalar in scalars])
