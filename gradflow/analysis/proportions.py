"""Intervals of the difference of two shares of the same images, which stay inside [-1, 1]."""

import math

import numpy as np
from scipy.special import ndtri

from gradflow.analysis.thresholds import CONFIDENCE

N_DRAWS = 10_000  # bootstrap samples: the ends of a 99.9 % interval rest on five of them


def wilson(n_right: float, n: float, confidence: float = CONFIDENCE.value) -> tuple[float, float]:
    """The interval of a share, good for small n and near 0 and 1. Wilson 1927.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n).

    >>> [round(end, 4) for end in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    z, p = float(ndtri((1 + confidence) / 2)), n_right / n
    centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def paired_proportions(
    both: float,
    only_first: float,
    only_second: float,
    neither: float,
    confidence: float = CONFIDENCE.value,
) -> tuple[float, float]:
    """The interval of the difference of two proportions on the same images.

    The ends of Wilson's two intervals, added in squares, less their correlation φ:
    d − √((p₁ − l₁)² − 2φ(p₁ − l₁)(u₂ − p₂) + (u₂ − p₂)²), and alike upwards.
    Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C,
    method 10. NaN without images.

    >>> [round(end, 4) for end in paired_proportions(36, 12, 2, 0)]
    [0.0569, 0.3404]
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return math.nan, math.nan
    first, second = both + only_first, both + only_second
    p1, p2 = first / n, second / n
    (l1, u1), (l2, u2) = wilson(first, n, confidence), wilson(second, n, confidence)
    phi = _phi(both, only_first, only_second, neither)
    down = _in_squares(p1 - l1, u2 - p2, phi)
    up = _in_squares(u1 - p1, p2 - l2, phi)
    return p1 - p2 - down, p1 - p2 + up


def paired_over_seeds(
    first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE.value
) -> tuple[float, float]:
    """The same for several seeds: `first` and `second` (seeds, images) bool, what is right.

    Newcombe's interval of the mean table over seeds, which is never narrower than the images
    allow, widened to a bootstrap over seeds and images, which knows how far the seeds lie apart.
    Each sample draws all n images and, since the mean of S seeds must vary by s²/S, S − 1 seeds
    (Rao & Wu 1988); both at once is Owen's pigeonhole bootstrap (2007). The same numbers for the
    same answers. NaN without images.
    """
    n_seeds, n = first.shape
    if n == 0:
        return math.nan, math.nan
    tables = (first & second, first & ~second, ~first & second, ~first & ~second)
    a, b, c, d = (float(one.mean()) * n for one in tables)
    low, high = paired_proportions(a, b, c, d, confidence)
    if n_seeds == 1:
        return low, high
    random = np.random.default_rng(0)
    differences = first.astype(np.float64) - second
    patterns, counts = np.unique(differences, axis=1, return_counts=True)
    images = random.multinomial(n, counts / n, N_DRAWS) / n
    seeds = random.multinomial(n_seeds - 1, np.full(n_seeds, 1 / n_seeds), N_DRAWS) / (n_seeds - 1)
    drawn = np.einsum("bs,sk,bk->b", seeds, patterns, images, optimize=True)
    ends = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(low, float(ends[0])), max(high, float(ends[1]))


def _in_squares(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))


def _phi(both: float, only_first: float, only_second: float, neither: float) -> float:
    """The correlation of the two answers, with the paper's continuity correction."""
    n = both + only_first + only_second + neither
    scale = math.sqrt(
        (both + only_first) * (only_second + neither) * (both + only_second)
        * (only_first + neither)
    )  # fmt: skip
    if scale == 0:
        return 0.0
    excess = both * neither - only_first * only_second
    if excess > 0:
        excess = max(excess - n / 2, 0)
    return excess / scale
