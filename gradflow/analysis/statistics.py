"""Statistics over seeds: one number per seed, Student's t, tests against a threshold, Holm.

And intervals of shares of the same images, which stay inside [-1, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit  # normal, Student's t: scipy.stats loads slowly

from gradflow.analysis.thresholds import ALPHA, CONFIDENCE, MIN_SEEDS

MAX_SEEDS = 1000  # beyond it "how many seeds" has no useful answer
N_DRAWS = 10_000  # bootstrap samples: the ends of a 99.9 % interval rest on five of them
POWER = 0.8  # of the answer to "how many seeds": the chance that so many decide


@dataclass(frozen=True)
class Interval:
    """The mean of one number per seed, with its t interval; low and high NaN for a single seed."""

    mean: float
    low: float
    high: float
    sd: float
    n: int


def enough_seeds(n: int) -> bool:
    """Whether so many may decide anything; fewer describe."""
    return n >= MIN_SEEDS.value


def mean_and_range(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lowest and highest over the first axis, the seeds; of what is finite, else NaN.

    >>> mean_and_range(np.array([[1.0, np.nan], [3.0, np.nan]]))
    (array([ 2., nan]), array([ 1., nan]), array([ 3., nan]))
    """
    known = np.isfinite(values)
    n = known.sum(axis=0)
    nothing = np.full(values.shape[1:], np.nan)
    mean = np.divide(np.where(known, values, 0.0).sum(axis=0), n, where=n > 0, out=nothing)
    low = np.where(known, values, np.inf).min(axis=0)
    high = np.where(known, values, -np.inf).max(axis=0)
    return mean, np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def t_interval(
    values: Sequence[float] | np.ndarray, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """mean ± t · sd / √n over seeds; values that are not finite are left out.

    It ends at the bounds of what is possible, such as 0 and 1 of a share, and covers no less then.

    >>> found = t_interval([1.0, 2.0, 3.0])
    >>> round(found.low, 3), found.mean, round(found.high, 3)
    (-0.484, 2.0, 4.484)
    >>> round(t_interval([0.9, 0.95, 1.0], bounds=(0, 1)).high, 3)
    1
    """
    numbers = _finite(values)
    n = len(numbers)
    centre = mean(numbers)
    if n < 2:
        return Interval(centre, math.nan, math.nan, math.nan, n)
    sd = float(numbers.std(ddof=1))
    half = float(stdtrit(n - 1, (1 + CONFIDENCE.value) / 2)) * sd / math.sqrt(n)
    return Interval(centre, max(centre - half, bounds[0]), min(centre + half, bounds[1]), sd, n)


def p_beyond(
    values: Sequence[float] | np.ndarray, threshold: float, side: Literal["below", "above"]
) -> float:
    """The one-sided t test that the mean over seeds lies beyond `threshold`; 1 with few seeds.

    NaN was not measured. An infinite number is that of a training which failed: on the other side
    it forbids the claim, on its side it counts as the furthest of the finite ones, which is less
    than it says. Seeds without any spread decide by the side on which they stand.
    """
    sign = -1.0 if side == "below" else 1.0
    numbers = np.asarray(values, dtype=np.float64)
    distances = sign * (numbers[~np.isnan(numbers)] - threshold)
    if not enough_seeds(len(distances)) or (distances == -math.inf).any():
        return 1.0
    finite = distances[np.isfinite(distances)]
    if not len(finite):
        return 0.0
    distances = np.minimum(distances, finite.max())
    mean, error = float(distances.mean()), float(distances.std(ddof=1)) / math.sqrt(len(distances))
    rounding = 1e-12 * max(abs(threshold), abs(mean))
    if error <= rounding:
        return 0.0 if mean > rounding else 1.0
    return float(stdtr(len(distances) - 1, -mean / error))


def p_equivalent(values: Sequence[float] | np.ndarray, margin: float) -> float:
    """Two one-sided tests (TOST) that the mean lies within ±margin. Schuirmann 1987."""
    return max(p_beyond(values, -margin, "above"), p_beyond(values, margin, "below"))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: adjusted p values, in the order given. Holm 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    n = len(p_values)
    adjusted, largest = [1.0] * n, 0.0
    for rank, i in enumerate(sorted(range(n), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (n - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def seeds_needed(
    values: Sequence[float] | np.ndarray, threshold: float, alpha: float = ALPHA.value
) -> int | None:
    """How many seeds would tell the mean from `threshold`, if mean and spread stay as they are.

    The smallest n with (t at 1 − α + t at 0.8) · sd / √n ≤ |mean − threshold|: with a chance of
    80 % at the one-sided level α. None if that takes more than 1000, or if the spread is not known.
    """
    found = t_interval(values)
    distance = abs(found.mean - threshold)
    if found.n < 2 or not distance > 0:
        return None
    n = np.arange(int(MIN_SEEDS.value), MAX_SEEDS + 1)
    quantiles = stdtrit(n - 1, 1 - alpha) + stdtrit(n - 1, POWER)
    enough = np.flatnonzero(quantiles * found.sd / np.sqrt(n) <= distance)
    return int(n[enough[0]]) if len(enough) else None


def mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean of what is finite; NaN where nothing is."""
    numbers = _finite(values)
    return float(numbers.mean()) if len(numbers) else math.nan


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    return np.asarray(numbers[np.isfinite(numbers)])


# -- of the same images ----------------------------------------------------------------------------


def wilson(n_right: float, n: float, confidence: float = CONFIDENCE.value) -> tuple[float, float]:
    """The interval of a share, good for small n and near 0 and 1. Wilson 1927.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n).

    >>> [round(end, 4) for end in wilson(81, 263)]
    [0.2553, 0.3662]
    """
    z, p = float(ndtri((1 + confidence) / 2)), n_right / n
    scale = 2 * (n + z**2)
    centre = (2 * n * p + z**2) / scale
    half = z / scale * math.sqrt(4 * n * p * (1 - p) + z**2)
    return (0.0 if n_right == 0 else centre - half), (1.0 if n_right == n else centre + half)


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
