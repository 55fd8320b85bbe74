"""Shattering: over what distance in image space does the input gradient keep its direction?"""

from dataclasses import dataclass
from math import ceil, exp

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from gradflow.examine.noise import in_mode

CHUNK = 64  # images at a time
N_POINTS = 256  # of Balduzzi et al. 2017
MIN_POINTS = 4
DECORRELATED = exp(-1)
JSON_POINTS = 32  # of the curve that is kept in JSON


@dataclass(frozen=True)
class Shattering:
    """How the input gradients at two points of a path agree, by the distance between the points.

    `cosines[τ]` is the mean cosine of all pairs of points that lie τ points apart, from
    `cosines[0]` = 1. The gradient has lost its direction where that first falls below 1/e; None
    where it does not within half of the path.
    """

    cosines: np.ndarray  # (n // 2,)
    n_points: int
    decorrelation_share: float | None  # of the whole path, 1
    decorrelation_distance: float | None  # ‖x − x′‖₂, in the unit of the images

    def to_json(self) -> dict[str, int | float | None | list[int] | list[float | None]]:
        """Plain types, with at most 32 points of the curve; None stands for NaN."""
        lags = range(0, len(self.cosines), ceil(len(self.cosines) / JSON_POINTS))
        cosines = [float(self.cosines[lag]) for lag in lags]
        return {
            "lags": list(lags),
            "cosines": [x if np.isfinite(x) else None for x in cosines],
            "n_points": self.n_points,
            "decorrelation_share": self.decorrelation_share,
            "decorrelation_distance": self.decorrelation_distance,
        }


def gradient_path(
    model: nn.Module, first: Tensor, last: Tensor, label: int, n: int = N_POINTS
) -> Shattering:
    """Cosines of ∂logit_label/∂x between `n` points on the line from image `first` to `last`.

    Images have the shape of one input, without the batch. The model is put into eval mode, since
    with batch statistics the images of a path would share their gradients; its running statistics
    should be recalibrated first. It is left as it was.

    The decorrelation length depends on the two images: compare networks on the same pairs. The
    cosines are not centred: they fall to the cosine of far points, which need not be 0.
    Balduzzi et al. 2017, https://arxiv.org/abs/1702.08591, sections 1 and 2.
    """
    if first.shape != last.shape or n < MIN_POINTS:
        raise ValueError(
            f"Expected two images of one shape and at least {MIN_POINTS} points, "
            f"but got {tuple(first.shape)}, {tuple(last.shape)} and {n}. "
            "Resize the images alike, and take more points."
        )
    distance = torch.linalg.vector_norm((last - first).double()).item()
    if distance == 0:
        raise ValueError("Expected two images that differ, but got the same twice. Take another.")
    shares = torch.linspace(0, 1, n, dtype=first.dtype, device=first.device)
    shares = shares.reshape(n, *(1 for _ in first.shape))
    points = torch.lerp(first, last, shares)
    cosines = cosines_by_lag(input_gradients(model, points, label))
    lag = decorrelation_lag(cosines)
    share = None if lag is None else lag / (n - 1)
    return Shattering(cosines, n, share, None if share is None else share * distance)


def gradient_cosine(model: nn.Module, x1: Tensor, x2: Tensor, label: int) -> float:
    """The cosine of ∂logit_label/∂x at two images of the shape of one input, in eval mode."""
    grads = input_gradients(model, torch.stack([x1, x2]), label).flatten(1).double()
    return cosine_similarity(grads[0], grads[1], dim=0).item()


def input_gradients(model: nn.Module, images: Tensor, label: int) -> Tensor:
    """∂logit_label/∂x of each image (n, …), of the same shape, in eval mode."""
    grads = []
    with in_mode(model, training=False), torch.enable_grad():
        for chunk in torch.split(images.detach(), CHUNK):
            chunk = chunk.clone().requires_grad_()
            # Images do not see each other in eval mode: the sum's gradient holds that of each.
            grads.append(torch.autograd.grad(model(chunk)[:, label].sum(), chunk)[0])
    return torch.cat(grads)


def cosines_by_lag(gradients: Tensor) -> np.ndarray:
    """(n // 2,): the mean cosine of gradients τ rows apart, for τ from 0, of gradients (n, …).

    A gradient of 0 has no direction and is left out; NaN where no pair remains.
    """
    rows = gradients.flatten(1).double()
    products = rows @ rows.T
    norms = products.diagonal().sqrt()
    cosines = products / torch.outer(norms, norms)  # 0 / 0 is NaN
    lags = range(len(rows) // 2)
    return torch.stack([cosines.diagonal(lag).nanmean() for lag in lags]).cpu().numpy()


def decorrelation_lag(cosines: np.ndarray) -> float | None:
    """The lag, between two points by a straight line, at which the cosine first falls below 1/e.

    >>> round(decorrelation_lag(np.array([1.0, 0.6, 0.2])), 3)
    1.58
    """
    lags = np.flatnonzero(np.isfinite(cosines))
    below = np.flatnonzero(cosines[lags] < DECORRELATED)
    if not len(below) or below[0] == 0:
        return None
    pair = lags[below[0] - 1 : below[0] + 1]
    return float(np.interp(-DECORRELATED, -cosines[pair], pair))  # interp wants a rising curve
