"""A sample of the batch: which images are drawn, what they sum to, and how far that may be off.

An image is a slice of dimension 0. What is summed over m of the B images, drawn at random without
replacement, is scaled by B / m, which makes it an unbiased estimate of the sum over all.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gradflow.record.sums import OUTPUT_SUMS, as_real, flatten_dense, gradient_sums, output_sums

# What has a variance, and in this order a sum per image.
OUTPUT_VARIANCES = ("sum_variance", "square_variance", "nonzero_variance")
GRADIENT_VARIANCES = ("output_grad_square_variance",)

_SCALED = OUTPUT_SUMS.index("max_abs")  # the sums before it are scaled by B / m
_VARYING = slice(1, _SCALED)  # Σz, Σz² and the number of z ≠ 0; n is the same of each image

# Elements of an image from which on a CPU a call of its own costs less than a copy of it.
LARGE_IMAGE = 2**14


class Sampler:
    """Draws images of each forward pass: a function of step, pass and process alone.

    Raises ValueError for a `size` that is not a whole number of at least 2.
    """

    def __init__(self, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            raise ValueError(
                "Expected `sample` to be a whole number of at least 2 images, since one alone has "
                f"no standard error, but got {size!r}."
            )
        self.size = size
        self.begin_step(0)

    def begin_step(self, step: int) -> None:
        """The passes that come belong to this step of the optimizer."""
        self._step, self._n_passes = step, 0

    def draw(self, n: int) -> "Sample":
        """The images of the next forward pass, whose batch has `n`; all where they are few."""
        process = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        rng = np.random.default_rng([self._step, self._n_passes, process])
        self._n_passes += 1
        m = min(self.size, n)
        return Sample(n, np.sort(rng.choice(n, m, replace=False)).tolist())


class OutputRead(NamedTuple):
    """What is read of an output. With `relu` all have a second half, that of max(z, 0)."""

    sums: Tensor  # (6,) of OUTPUT_SUMS
    active: Tensor  # (channels,) uint8
    by_image: Tensor | None = None  # (m, 3), of what has OUTPUT_VARIANCES

    def half(self, index: int) -> "OutputRead":
        """The first or the second half of a read with `relu`."""
        by_image = None if self.by_image is None else self.by_image.chunk(2, dim=1)[index]
        return OutputRead(self.sums.chunk(2)[index], self.active.chunk(2)[index], by_image)


class Sample:
    """The images that are measured in one forward pass: some of `n`, by their numbers."""

    def __init__(self, n: int, images: Sequence[int]) -> None:
        self.n, self.images = n, images
        self._index: dict[torch.device, Tensor] = {}

    def is_of(self, x: Tensor) -> bool:
        """Whether the images are a part of `x`: a tensor without a batch is measured whole."""
        return x.dim() > 1 and x.shape[0] == self.n > len(self.images)

    def select(self, x: Tensor) -> Tensor:
        """The images of `x`, in its order of memory; `x` itself where it is measured whole."""
        if not self.is_of(x):
            return x
        if x.device not in self._index:  # the host does not wait for the copy
            index = torch.tensor(self.images).to(x.device, non_blocking=True)
            self._index[x.device] = index
        index = self._index[x.device]
        inside = x.movedim(1, -1)
        if inside.is_contiguous():  # channels last, which `index_select` alone would undo
            return inside.index_select(0, index).movedim(-1, 1)
        return x.index_select(0, index)

    def read_output(self, x: Tensor, channel_dim: int, *, relu: bool) -> OutputRead:
        """The sums of a real output, estimated; its extremes and NaN are those of the sample."""
        read = partial(output_sums, channel_dim=channel_dim, relu=relu)
        m, n_parts = len(self.images), 1 + relu
        if not self.is_of(x):
            return OutputRead(*read(x), _zeros(x, m, n_parts * len(OUTPUT_VARIANCES)))
        if _has_large_images(x):
            reads = [read(x[image : image + 1]) for image in self.images]
            by_image = torch.stack([sums for sums, _ in reads]).view(m, n_parts, -1)
            sums, active = by_image.sum(0), torch.stack([active for _, active in reads]).amax(0)
            sums[:, _SCALED] = by_image[:, :, _SCALED].amax(0)
            by_image = by_image[:, :, _VARYING].flatten(1)
        else:
            x = self.select(x)
            sums, active = read(x)
            sums = sums.view(n_parts, -1)
            parts = [x, x.clamp(min=0)] if relu else [x]
            by_image = torch.cat([_sums_by_image(part) for part in parts], dim=1)
        # In this order, or else the number of elements would not stay whole.
        sums[:, :_SCALED].mul_(self.n).div_(m)
        return OutputRead(sums.flatten(), active, by_image)

    def read_gradient(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of a gradient, Σg² estimated, and Σg² of each image, (m, 1)."""
        grad, m = as_real(grad), len(self.images)
        if not self.is_of(grad):
            return gradient_sums(grad), _zeros(grad, m, 1)
        if _has_large_images(grad):
            by_image = torch.stack([gradient_sums(grad[i : i + 1]) for i in self.images])
            sums, squares = by_image.sum(0), by_image[:, :1]
        else:
            part = self.select(grad)
            sums, squares = gradient_sums(part), _squares_by_image(part).unsqueeze(1)
        sums[0] *= self.n / m
        return sums, squares

    def variances(self, by_image: Tensor) -> Tensor:
        """Of the estimated sums over all images: B² (1 − m/B) s² / m. (m, sums) to (sums,).

        s² is the variance between the images (Cochran 1977, Sampling Techniques, chapter 2).
        """
        n, m = self.n, len(self.images)
        if n == m:
            return torch.zeros_like(by_image[0])
        return by_image.var(dim=0) * (n * (n - m) / m)


def _has_large_images(x: Tensor) -> bool:
    return x.is_cpu and x.numel() >= LARGE_IMAGE * x.shape[0]


def _sums_by_image(x: Tensor) -> Tensor:
    """Σz, Σz² and the number of z ≠ 0 of each image. (images, 3)"""
    flat = flatten_dense(x).view(x.shape[0], -1)
    # `ne` into a buffer of floats: sums of bools are slow on a CPU.
    n_nonzero = torch.ne(flat, 0, out=torch.empty_like(flat)).sum(1, dtype=torch.float64)
    return torch.stack([flat.sum(1, dtype=torch.float64), _squares_by_image(x), n_nonzero], dim=1)


def _squares_by_image(x: Tensor) -> Tensor:
    """Σz² of each image, in float64, so that no square is lost. (images,)"""
    flat = flatten_dense(x).view(x.shape[0], -1)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return norms.square()


def _zeros(x: Tensor, m: int, n_sums: int) -> Tensor:
    """What varies between the images of a tensor that is measured whole. (m, n_sums)"""
    return torch.zeros(m, n_sums, dtype=torch.float64, device=x.device)
