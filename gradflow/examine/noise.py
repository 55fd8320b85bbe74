"""Gradient noise: how much of a batch's gradient is common to all batches, how much is chance.

Here also stands what the other measurements of gradients share: gradients at given weights, of a
network that is left as it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.func import functional_call

from gradflow.analysis.thresholds import CONFIDENCE
from gradflow.typed import to_json

Batch = tuple[Tensor, Tensor]  # images (B, …) and labels (B,), on the device of the model
Loss = Callable[[Tensor, Tensor], Tensor]  # of logits and labels: the mean over the batch

# With one batch left out, two must remain: a product of two gradients is what is averaged.
MIN_BATCHES = 3


@dataclass(frozen=True)
class NoiseScale:
    """Signal and noise of one parameter's gradient, or of all; g in loss / weight.

    `noise_scale` is the batch size, in images, at which noise and signal are equal. Where the
    interval of the signal reaches down to 0 it is inf: no signal was seen. Intervals: 95 %.
    """

    signal: float  # estimates ‖E g‖², (loss / weight)²; may be negative
    noise: float  # estimates the trace of the covariance of one image's gradient, (loss / weight)²
    noise_scale: float  # noise / signal, images
    signal_interval: tuple[float, float]
    noise_scale_interval: tuple[float, float]
    n_batches: int
    batch_size: int  # images

    def to_json(self) -> dict[str, Any]:
        """Plain types; None stands for inf and NaN."""
        return dict(to_json(self))


def gradient_noise(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> dict[str, NoiseScale]:
    """Signal and noise of each trainable parameter's gradient at fixed weights, and of "all".

    With g_i the gradient of batch i of K, B images each, in train mode::

        signal      = Σ_{i≠j} g_i·g_j / (K (K − 1))     unbiased for ‖E g‖²
        noise       = B · (mean ‖g_i‖² − signal)        unbiased for tr Cov of one image's gradient
        noise_scale = noise / signal                    images

    Whole batches are compared, and not images, since BatchNorm couples the images of a batch; with
    it, `noise` holds the chance in the batch statistics as well. The batches must be disjoint and
    drawn at random. McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, appendix A.

    The intervals are Student's with the jackknife's variance over batches. At E g = 0 that variance
    is 2 (K − 1)/(K − 2) times too large (of a pair of gradients both members count), so that 0 is
    covered more often than in 95 %: doubt counts against a signal. The ratio's interval is
    Fieller's (1954), with the jackknife's covariance: it is unbounded just where the interval of
    the signal holds 0, as the noise scale then is, while an interval of log(ratio) ends anywhere.

    Two passes, 2K gradients: the second multiplies each g_i by the sum that the first made, which
    is all that the jackknife needs. So two copies of the weights are held and not K. The model,
    its buffers and the random numbers are left as they were. Raises ValueError for fewer than
    three batches or batches of different size.
    """
    batch_size = _common_size(batches)
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
    if not weights:
        raise ValueError("Expected a model with trainable parameters, but got none. Unfreeze some.")
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with in_mode(model, training=True):
        for batch in batches:
            for name, grad in gradients(model, weights, batch, loss).items():
                total[name] += grad
    # Again from the same random numbers, so that dropout draws the same masks.
    with in_mode(model, training=True):
        rows = [_products(gradients(model, weights, batch, loss), total) for batch in batches]
    products = torch.stack(rows).cpu().numpy()  # (K, parameters, 2): the only transfer
    each = {name: _estimate(products[:, index], batch_size) for index, name in enumerate(weights)}
    return each | {"all": _estimate(products.sum(axis=1), batch_size)}


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Train or eval mode inside; afterwards every module's flag and the random numbers are back."""
    was_training = {module: module.training for module in model.modules()}
    cuda = sorted({w.device.index for w in model.parameters() if w.device.type == "cuda"})
    with torch.random.fork_rng(cuda):
        try:
            model.train(training)
            yield
        finally:
            for module, flag in was_training.items():
                module.training = flag


def loss_at(model: nn.Module, weights: Mapping[str, Tensor], batch: Batch, loss: Loss) -> Tensor:
    """The loss of `batch` with these weights in the place of the model's own of the same names.

    The model's buffers are lent as copies, so that BatchNorm's running statistics stay.
    """
    images, labels = batch
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return loss(functional_call(model, {**weights, **buffers}, (images,)), labels)


def gradients(
    model: nn.Module, weights: Mapping[str, Tensor], batch: Batch, loss: Loss
) -> dict[str, Tensor]:
    """∂ loss / ∂ weights at these weights; 0 where the loss does not depend on one.

    No `.grad` is touched: the derivative is taken at copies of the names, not of the memory.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    with torch.enable_grad():
        value = loss_at(model, leaves, batch, loss)
    grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def dot(x: Tensor, y: Tensor) -> Tensor:
    """⟨x, y⟩ in float64: sums of millions of products, whose differences are what counts."""
    return torch.dot(x.flatten().double(), y.flatten().double())


def _products(grads: Mapping[str, Tensor], total: Mapping[str, Tensor]) -> Tensor:
    """(parameters, 2): g·Σg and ‖g‖² of each parameter, for one batch's g."""
    rows = [torch.stack([dot(g, total[name]), dot(g, g)]) for name, g in grads.items()]
    return torch.stack(rows)


def _estimate(products: np.ndarray, batch_size: int) -> NoiseScale:
    """From g_i·Σg and ‖g_i‖² of each batch, (K, 2)."""
    dots, squares = products.T
    k = len(dots)
    signal, noise = _signal_and_noise(dots.sum(), squares.sum(), k, batch_size)
    # Without batch i: ‖Σg − g_i‖² = ‖Σg‖² − 2 g_i·Σg + ‖g_i‖².
    signals, noises = _signal_and_noise(
        dots.sum() - 2 * dots + squares, squares.sum() - squares, k - 1, batch_size
    )
    covariance = (k - 1) * np.cov([signals, noises], bias=True)
    t = float(student.ppf((1 + float(CONFIDENCE)) / 2, k - 1))
    half = t * sqrt(covariance[0, 0])
    interval = (float(signal - half), float(signal + half))
    return NoiseScale(
        signal=float(signal),
        noise=float(noise),
        noise_scale=inf if interval[0] <= 0 else float(noise / signal),
        signal_interval=interval,
        noise_scale_interval=_fieller(float(signal), float(noise), covariance, t),
        n_batches=k,
        batch_size=batch_size,
    )


def _signal_and_noise(
    total_square: Any, sum_of_squares: Any, k: int, batch_size: int
) -> tuple[Any, Any]:
    """From ‖Σg‖² and Σ‖g‖² over k batches; numbers, or arrays of them."""
    signal = (total_square - sum_of_squares) / (k * (k - 1))
    return signal, batch_size * (sum_of_squares / k - signal)


def _fieller(signal: float, noise: float, covariance: np.ndarray, t: float) -> tuple[float, float]:
    """All ratios R that are not refuted: (noise − R signal)² ≤ t² Var(noise − R signal).

    A quadratic a R² − 2 b R + c ≤ 0. Where a ≤ 0 the signal may be 0 and R has no upper end.
    """
    a = signal**2 - t**2 * float(covariance[0, 0])
    b = signal * noise - t**2 * float(covariance[0, 1])
    c = noise**2 - t**2 * float(covariance[1, 1])
    if a > 0 and signal < 0:
        return inf, inf  # surely negative, which no true signal is
    root = sqrt(max(b**2 - a * c, 0.0))
    # The smaller root as c / larger, since a may be 0. Where c ≤ 0 the noise itself may be 0.
    low = c / (b + root) if c > 0 and b + root > 0 else 0.0
    return low, (b + root) / a if a > 0 else inf


def _common_size(batches: Sequence[Batch]) -> int:
    if len(batches) < MIN_BATCHES:
        raise ValueError(
            f"Expected at least {MIN_BATCHES} batches, but got {len(batches)}. "
            "Each batch is left out once, and the others are compared."
        )
    sizes = sorted({len(labels) for _, labels in batches})
    if len(sizes) > 1:
        raise ValueError(
            f"Expected batches of one size, but got sizes {', '.join(map(str, sizes))}. "
            "Leave out the last batch of an epoch if it is smaller."
        )
    return sizes[0]
