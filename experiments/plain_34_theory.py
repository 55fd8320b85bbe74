"""Claim: λ of Plain-34 at its start follows from mean-field theory, pixel by pixel.

No network is built; `gradflow check --controls` finds these numbers in networks (C6).

Both functions follow the squared gradient from the pooling back to the first stage, pixel by pixel,
and take the slope over all layers behind the stem, as the instrument does. Zero padding is what
makes pixels differ: at the border a 3×3 convolution adds up 4 or 6 neighbours, not 9.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np

from gradflow.architectures import CHANNELS_PER_STAGE, Init
from gradflow.nets import BLOCKS_PER_STAGE

TAPS = [(dy, dx) for dy in range(3) for dx in range(3)]


@dataclass(frozen=True)
class Conv:
    """A 3×3 convolution behind the stem."""

    stage: int
    n_in: int
    n_out: int
    stride: int


def convolutions() -> list[Conv]:
    """Those of the blocks, input first."""
    found, n_in = [], CHANNELS_PER_STAGE[0]
    for stage, n_out in enumerate(CHANNELS_PER_STAGE):
        for index in range(2 * BLOCKS_PER_STAGE[34][stage]):
            found.append(Conv(stage, n_in, n_out, 2 if index == 0 and stage else 1))
            n_in = n_out
    return found


def sides(image_size: int) -> list[int]:
    """Pixels a side in each stage; the stem divides by 4."""
    return [-(-image_size // (4 * 2**stage)) for stage in range(len(CHANNELS_PER_STAGE))]


# -- without BatchNorm -------------------------------------------------------------------------


def growth_without_norm(init: Init, image_size: int) -> float:
    """λ of Plain-34 without BatchNorm, behind the stem.

    Each convolution turns the map v of squared gradients by pixel, summed over channels, into
    ½ C_in σ_w² Kᵀv, where K adds up the neighbours. The ReLU's ½ holds at any scale, since nothing
    has a bias. Of a flat v, K leaves 9 ((3H − 2) / 3H)²; but v does not stay flat, and deep down
    the factor rises to the largest eigenvalue of K. K acts on rows and columns alike, so one side
    will do.
    """
    all_sides = sides(image_size)
    v = np.ones(all_sides[-1])  # along one side; the pooling gives every pixel the same
    squares = [1.0]
    for conv in reversed(convolutions()[1:]):
        stage = conv.stage if conv.stride == 1 else conv.stage - 1
        spread = _neighbours(all_sides[stage])[:: conv.stride].T @ v
        variance = 2 / (9 * conv.n_out) if init == "kaiming" else 1 / (27 * conv.n_in)
        factor = conv.n_in * variance / 2 * (spread.sum() / v.sum()) ** 2
        squares.append(squares[-1] * float(factor))
        v = spread
    return _growth(squares)


def _neighbours(n_pixels: int) -> np.ndarray:
    """(n, n): 1 where two pixels of a line are the same or next to each other."""
    return np.asarray(sum(np.eye(n_pixels, k=k) for k in (-1, 0, 1)))


# -- with BatchNorm ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernels:
    """Covariances of one channel between pixels: arrays (S, S, S, S) of pixel by pixel.

    `same` is of two pixels of one image, `other` of pixels of two images; with B images a pixel
    has one image of the first kind and B − 1 of the second.
    """

    same: np.ndarray
    other: np.ndarray

    def times(self, theirs: "Kernels") -> "Kernels":
        return Kernels(self.same * theirs.same, self.other * theirs.other)

    def scaled(self, factor: float) -> "Kernels":
        return Kernels(self.same * factor, self.other * factor)

    def diagonal(self) -> np.ndarray:
        """(S, S): the variance of each pixel."""
        return np.asarray(np.einsum("ijij->ij", self.same))

    def total(self, batch_size: int) -> float:
        """The sum over the pixels of one image and those of all B."""
        return float(self.same.sum() + (batch_size - 1) * self.other.sum())

    def centred(self, batch_size: int) -> "Kernels":
        """After the mean over batch and pixels was taken off."""
        same, other = self.same.mean((2, 3)), self.other.mean((2, 3))
        row = (same + (batch_size - 1) * other) / batch_size
        taken = row[:, :, None, None] + row - row.mean()
        return Kernels(self.same - taken, self.other - taken)


@dataclass(frozen=True)
class NormedConv:
    """What the way back needs of a convolution, its BatchNorm and the ReLU before it."""

    conv: Conv
    outputs: Kernels  # E[relu(z) relu(z′)] of the z before the convolution
    masks: Kernels  # E[relu′(z) relu′(z′)] of the same z
    inverse_variance: float  # E[1/s²] of the BatchNorm behind, for weights of variance 1/C_in


def growth_with_norm(image_size: int, batch_size: int) -> float:
    """λ of Plain-34 with BatchNorm, behind the stem.

    Forward, the covariance of z between pixels goes through the arc-cosine kernel, the convolution
    and BatchNorm. Back, the covariance Γ of the gradient goes through the ReLU's kernel of order 0,
    BatchNorm and the transposed convolution. BatchNorm's Jacobian (P − zzᵀ/N) / s takes off the
    mean and, to first order, tr(E[relu relu′] Γ) / N; and E[1/s²] = (1 + 2 tr(C²)/N²) / E[s²] for
    z of covariance C over the N pixels of the batch. With one pixel an image and a large batch this
    is Yang's π / (π − 1).

    Assumed: many channels, and a stem that gives pixels that do not know of each other. The first
    order is rough where N is small: 16 images of 2×2 pixels.
    """
    layers, masks, outputs = _forward(sides(image_size)[0], batch_size)
    n_pixels = sides(image_size)[-1] ** 2
    behind = Kernels(np.ones_like(masks.same), np.zeros_like(masks.other))  # ∂L/∂relu(z)
    squares = [float(behind.times(masks).diagonal().sum())]
    for layer in reversed(layers[1:]):
        along = outputs.times(behind).total(batch_size) / (batch_size * n_pixels)
        before = behind.times(masks).centred(batch_size)
        kept = 1 - along / before.diagonal().sum()
        outputs, masks = layer.outputs, layer.masks
        behind = _back_through(layer.conv.stride, before, len(masks.same))
        behind = behind.scaled(kept * layer.inverse_variance)
        n_pixels = len(masks.same) ** 2
        squares.append(float(behind.times(masks).diagonal().sum()))
    return _growth(squares)


def _forward(side: int, batch_size: int) -> tuple[list[NormedConv], Kernels, Kernels]:
    """The layers, input first, and the masks and outputs of the last ReLU."""
    z = Kernels(np.eye(side**2).reshape((side,) * 4), np.zeros((side,) * 4))
    layers = []
    for conv in convolutions():
        outputs, masks = _relu(z)
        z = Kernels(
            *(_through(conv.stride, kernel) for kernel in (outputs.same, outputs.other))
        ).centred(batch_size)
        variance = float(z.diagonal().mean())
        z = z.scaled(1 / variance)
        spread = z.times(z).total(batch_size) / (batch_size * len(z.same) ** 4)
        layers.append(NormedConv(conv, outputs, masks, (1 + 2 * spread) / variance))
    outputs, masks = _relu(z)
    return layers, masks, outputs


def _relu(z: Kernels) -> tuple[Kernels, Kernels]:
    """E[relu relu′] and E[mask mask′] of Gaussian z: arc-cosine kernels of order 1 and 0."""
    deviation = np.sqrt(z.diagonal())
    scale = deviation[:, :, None, None] * deviation
    outputs, masks = [], []
    for kernel in (z.same, z.other):
        cosine = np.clip(kernel / scale, -1, 1)
        opening = pi - np.arccos(cosine)
        outputs.append(scale * (np.sqrt(1 - cosine**2) + cosine * opening) / (2 * pi))
        masks.append(opening / (2 * pi))
    return Kernels(*outputs), Kernels(*masks)


def _through(stride: int, kernel: np.ndarray) -> np.ndarray:
    """Σ over the 9 taps: two pixels of the output share the weight at each."""
    side, padded = len(kernel), np.pad(kernel, 1)
    moved = [
        padded[dy : dy + side, dx : dx + side, dy : dy + side, dx : dx + side] for dy, dx in TAPS
    ]
    return np.asarray(sum(moved))[::stride, ::stride, ::stride, ::stride]


def _back_through(stride: int, kernels: Kernels, side: int) -> Kernels:
    """The transpose of `_through`, to inputs of `side` pixels a side."""
    found = []
    for kernel in (kernels.same, kernels.other):
        padded = np.zeros((side + 2,) * 4)
        for dy, dx in TAPS:
            rows, columns = slice(dy, dy + side, stride), slice(dx, dx + side, stride)
            padded[rows, columns, rows, columns] += kernel
        found.append(padded[1:-1, 1:-1, 1:-1, 1:-1])
    return Kernels(*found)


# -- the slope ---------------------------------------------------------------------------------


def _growth(squares: Sequence[float]) -> float:
    """λ by least squares of the logarithm over the index.

    Not the instrument's own `slopes`: a mistake there must not be in the truth as well.
    """
    return float(np.exp(np.polyfit(np.arange(len(squares)), np.log(squares), 1)[0]))


if __name__ == "__main__":
    for init in ("torch-default", "kaiming"):
        print(f"without BatchNorm, {init}: {growth_without_norm(init, 64)!r}")
    print(f"with BatchNorm, 16 images: {growth_with_norm(64, 16)!r}")
