"""Counting elements by power of two, for histograms.py: one read of the tensor."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gradflow.record import kernel, sparse
from gradflow.record.copies import Read, table
from gradflow.record.histograms import GRADIENTS, HIGHEST, LOWEST, N_BINS, NONFINITE, WEIGHTS, ZERO
from gradflow.record.memory import HOST, as_dense, as_real, flatten_dense, n_real
from gradflow.record.torch_sums import PIECE

BIAS = 127  # of the exponent in the bits of a float32
N_FIELDS = 256  # values of it: 0 for zero and what is denormal, 255 for NaN and inf


def read_histograms(
    weights: Mapping[str, Tensor], grads: Mapping[str, Tensor], grad_scale: Tensor | None
) -> dict[str, Read]:
    """The counts of weights and of gradients, which are divided by `grad_scale`."""
    if grad_scale is not None:
        grads = {name: grad / grad_scale.to(grad.device) for name, grad in grads.items()}
    return {
        name: table({parameter: _counts(x) for parameter, x in tensors.items()})
        for name, tensors in ((WEIGHTS, weights), (GRADIENTS, grads))
    }


def _counts(x: Tensor) -> Tensor:
    """What a sparse tensor does not hold is zero."""
    counts = exponent_counts(sparse.stored(x))
    if sparse.is_sparse(x):
        counts[ZERO] += n_real(x) - counts.sum()
    return counts


def exponent_counts(x: Tensor) -> Tensor:
    """(N_BINS,) float64 on the device of x: the elements in each bin of histograms.py.

    >>> counts = exponent_counts(torch.tensor([0.0, 1.0, -1.5, 4.0, torch.inf]))
    >>> {bin: int(n) for bin, n in enumerate(counts) if n}  # 0, 2^0, 2^2, not finite
    {0: 1, 65: 2, 67: 1, 81: 1}
    """
    x = as_dense(as_real(x))
    library = kernel.for_tensor(x)
    if library is None:
        return _by_torch(flatten_dense(x))
    fields = torch.empty(N_FIELDS + 1, dtype=torch.float64, device=HOST)
    library.gradflow_exponents(
        x.dtype == torch.bfloat16, x.data_ptr(), x.numel(),
        torch.get_num_threads(), fields.data_ptr(),
    )  # fmt: skip
    n_zero = fields[N_FIELDS]
    low, high = BIAS + LOWEST, BIAS + HIGHEST
    ends = torch.stack([n_zero, fields[: low + 1].sum() - n_zero])
    top = torch.stack([fields[high : N_FIELDS - 1].sum(), fields[N_FIELDS - 1]])
    return torch.cat([ends, fields[low + 1 : high], top])


def _by_torch(flat: Tensor) -> Tensor:
    counts = torch.zeros(N_BINS, dtype=torch.int64, device=flat.device)
    for piece in torch.split(flat, PIECE) if flat.device.type == "cpu" else (flat,):
        piece = piece if piece.dtype == torch.float64 else piece.float()
        # |x| = mantissa · 2^exponent with the mantissa from 1/2 up to 1.
        place = (torch.frexp(piece).exponent.long() - LOWEST).clamp_(ZERO + 1, NONFINITE - 1)
        place.masked_fill_(piece == 0, ZERO).masked_fill_(~torch.isfinite(piece), NONFINITE)
        counts.scatter_add_(0, place, torch.ones_like(place))  # bincount would wait for a device
    return counts.double()
