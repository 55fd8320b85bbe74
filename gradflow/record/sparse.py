"""The sums of sums.py where a weight or its gradient is sparse: what is not stored is 0."""

import torch
from torch import Tensor

from gradflow.record.sums import PRODUCT_SUMS, gradient_sums

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def is_sparse(x: Tensor) -> bool:
    return x.layout is not torch.strided and (x.is_sparse or x.layout in _COMPRESSED)


def stored(x: Tensor) -> Tensor:
    """The elements that a sparse tensor holds; a dense one as it is."""
    return _coo(x).values() if is_sparse(x) else x.detach()


def product_sums(weight: Tensor, grad: Tensor) -> Tensor:
    """PRODUCT_SUMS of a weight and its gradient, one or both of them sparse."""
    square = gradient_sums(stored(weight))[0]
    grad_square, n_nonfinite = gradient_sums(stored(grad))
    rows, weights, grads = _rows(weight, grad)
    squares = square * grad_square if weight.dim() < 2 else torch.dot(weights, grads)
    product = _product(weight.detach(), grad.detach())
    sums = torch.stack([square, grad_square, n_nonfinite, product, squares])
    assert len(sums) == len(PRODUCT_SUMS)
    return sums


def difference_sums(now: Tensor, before: Tensor) -> Tensor:
    """DIFFERENCE_SUMS of two sparse tensors."""
    difference = (_coo(now) - _coo(before)).coalesce().values()
    changed = (difference != 0).sum(dtype=torch.float64)
    return torch.stack([gradient_sums(difference)[0], changed])


def _coo(x: Tensor) -> Tensor:
    x = x.detach()
    return (x if x.is_sparse else x.to_sparse(layout=torch.sparse_coo)).coalesce()


def _product(weight: Tensor, grad: Tensor) -> Tensor:
    """⟨w, g⟩, with the elements of the dense one at the places of the sparse one."""
    if is_sparse(weight) and is_sparse(grad):
        both = (_coo(weight).to(torch.float64) * _coo(grad).to(torch.float64)).coalesce()
        return both.values().sum()
    holes, full = (weight, grad) if is_sparse(weight) else (grad, weight)
    holes = _coo(holes)
    at = full[tuple(holes.indices())]
    return (at.double() * holes.values().double()).sum()


def _rows(weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """‖w_r‖² and ‖g_r‖² of the rows r in which something is stored of both."""
    sparse = _coo(grad if is_sparse(grad) else weight)
    rows = torch.unique(sparse.indices()[0])
    return rows, _row_squares(weight, rows), _row_squares(grad, rows)


def _row_squares(x: Tensor, rows: Tensor) -> Tensor:
    if not is_sparse(x):
        return x.detach()[rows].double().flatten(1).square().sum(1) if x.dim() > 1 else rows * 0.0
    x = _coo(x)
    place = torch.searchsorted(rows, x.indices()[0])
    is_there = rows[place.clamp(max=len(rows) - 1)] == x.indices()[0] if len(rows) else place < 0
    squares = x.values().double().square().reshape(len(place), -1).sum(1)
    sums = rows.new_zeros(len(rows), dtype=torch.float64)
    return sums.index_add_(0, place[is_there], squares[is_there])
