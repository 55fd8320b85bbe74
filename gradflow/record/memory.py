"""How tensors lie in memory, and the same numbers in an order that a kernel can read."""

import math

import torch
from torch import Tensor

# Said wherever a tensor is made for the host: the loop may have set another default device.
HOST = torch.device("cpu")


def n_real(x: Tensor) -> int:
    """Real numbers: a complex one is summed, and counted, as two."""
    return x.numel() * (2 if x.is_complex() else 1)


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


def as_alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as real numbers of one type, which lie in memory in one order."""
    x, y = as_real(x), as_real(y)
    if y.dtype != x.dtype:
        wide = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(wide), y.to(wide)
    if y.stride() != x.stride() or not is_dense(x):
        y = torch.empty_like(x).copy_(y) if is_dense(x) else y.contiguous()
        x = as_dense(x)
    return x, y


def flatten_dense(x: Tensor) -> Tensor:
    """The elements of `x` as one dimension, in memory order, without a copy where x is dense."""
    return x.as_strided((x.numel(),), (1,)) if is_dense(x) else x.reshape(-1)


def as_dense(x: Tensor) -> Tensor:
    return x if is_dense(x) else x.contiguous()


def is_dense(x: Tensor) -> bool:
    return (
        x.is_contiguous()
        or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
        or (x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d))
    )


def by_channel(x: Tensor, channel_dim: int) -> tuple[Tensor, int, int, int]:
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
