"""Copies of parameters and gradients, and what has changed since they were taken."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gradflow.record import sparse
from gradflow.record.memory import HOST
from gradflow.record.sums import DIFFERENCE_SUMS, difference_sums

# Which parameters, and (parameters, sums).
Read = tuple[tuple[str, ...], Tensor]


class Copies:
    """Copies of tensors by name, in memory that is used again at the next recorded step."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._taken: set[str] = set()

    def room(self, name: str, like: Tensor) -> Tensor:
        """Memory that the caller fills with a copy of `like`, which is dense."""
        room = self.tensors.get(name)
        if room is None or not _match(room, like):
            # In the layout of the parameter, so that both are read as one run of memory.
            room = self.tensors[name] = torch.empty_like(like, requires_grad=False)
        self._taken.add(name)
        return room

    def take(self, name: str, tensor: Tensor) -> Tensor:
        if sparse.is_sparse(tensor):  # its number of elements changes
            self._taken.add(name)
            self.tensors[name] = tensor.detach().clone()
            return self.tensors[name]
        return self.room(name, tensor).copy_(tensor.detach())

    def get(self, name: str, like: Tensor) -> Tensor | None:
        """The copy, if it was taken and still fits."""
        if name not in self._taken or not _match(self.tensors[name], like):
            return None
        return self.tensors[name]

    def forget(self, names: Iterable[str]) -> None:
        """The copies of these are out of date; their memory stays."""
        self._taken.difference_update(names)


def _match(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device, one.layout) == (
        other.shape, other.dtype, other.device, other.layout
    )  # fmt: skip


def compare(tensors: Mapping[str, Tensor], copies: Copies) -> Read:
    """DIFFERENCE_SUMS of each tensor and its copy, of those that have one."""
    pairs = {name: (x, copies.get(name, x)) for name, x in tensors.items()}
    known = {name: (x, copy) for name, (x, copy) in pairs.items() if copy is not None}
    dense = {name: pair for name, pair in known.items() if pair[0].layout is torch.strided}
    others = {name: pair for name, pair in known.items() if name not in dense}
    parts = [difference_sums(*zip(*dense.values(), strict=True))] if dense else []
    if others:
        parts.append(torch.stack([sparse.difference_sums(*pair) for pair in others.values()]))
    empty = torch.empty(0, len(DIFFERENCE_SUMS), dtype=torch.float64, device=HOST)
    return (*dense, *others), torch.cat(parts) if parts else empty


def table(sums: Mapping[str, Tensor]) -> Read:
    """The sums of each parameter as rows."""
    rows = [x.reshape(-1) for x in sums.values()]
    none = torch.empty(0, dtype=torch.float64, device=HOST)
    return tuple(sums), torch.stack(rows) if rows else none
