"""Shares of a gap: how much of it goes away when one thing is changed on purpose.

With the badness b of a network (training loss, or minus accuracy) the gap of seed i is
G_i = b(accused) − b(reference), and D_i is what an arm takes away from it. The share of the gap is

    E = mean D / mean G

a ratio of paired means. That E exceeds θ is that the mean of D_i − θ G_i exceeds 0, which Student's
t tests exactly for normal values, however small the study (Fieller 1954); its interval holds the θ
that the test does not reject.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from gradflow.analysis import thresholds as at
from gradflow.analysis.findings import Status
from gradflow.analysis.statistics import (
    MAX_SEEDS,
    Interval,
    enough_seeds,
    holm,
    p_beyond,
    p_equivalent,
    t_interval,
)

ShareStatus = Literal["main cause", "contributor", "not a cause", "undetermined"]

ALPHA = at.ALPHA.value


def gap_status(gap: Sequence[float] | np.ndarray, margin: float) -> Status:
    """Whether there is a gap to explain, one number per seed: mean G > 0, and not only a little.

    No where |mean G| surely lies within `margin`, or mean G surely below 0: what is surely above 0
    and surely within the margin is too small to matter, so that no gap passes both tests.
    """
    if p_equivalent(gap, margin) <= ALPHA or p_beyond(gap, 0.0, "below") <= ALPHA:
        return "no"
    return "yes" if p_beyond(gap, 0.0, "above") <= ALPHA else "undetermined"


def is_wide_gap(gap: Sequence[float] | np.ndarray, margin: float) -> bool:
    """Whether mean G > `margin` by the t test: shares of a gap that luck could make are luck's.

    A margin of 0 asks only for a gap above 0: where it may be 0, Fieller's interval is infinite.
    """
    if margin == 0:
        return len(gap) > 0 and float(np.mean(gap)) > 0
    return p_beyond(gap, margin, "above") <= ALPHA


@dataclass(frozen=True)
class Share:
    """What an arm takes of the gap: one number per seed for each part.

    The gap of seed i shrinks by what the accused network gains, less what the reference gains.
    `treats_accused` says whether the arm changes the accused network, which then has to gain.
    """

    gap: tuple[float, ...]  # G_i, without the arm
    accused_gain: tuple[float, ...]  # by how much the arm lowers the badness of the accused
    reference_gain: tuple[float, ...]
    treats_accused: bool = True
    margin: float = 0.0  # a gap that is not surely wider has no shares

    def __post_init__(self) -> None:
        if not len(self.gap) == len(self.accused_gain) == len(self.reference_gain):
            raise ValueError(
                "Expected one number per seed in every part, but got "
                f"{len(self.gap)}, {len(self.accused_gain)} and {len(self.reference_gain)}."
            )

    @property
    def n(self) -> int:
        return len(self.gap)

    @property
    def taken(self) -> np.ndarray:
        """(seeds,) D_i."""
        return np.subtract(self.accused_gain, self.reference_gain)

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite([self.gap, self.accused_gain, self.reference_gain]).all())

    @property
    def can_be_shared(self) -> bool:
        return self.is_finite and is_wide_gap(self.gap, self.margin)

    @property
    def value(self) -> float:
        """E; NaN without a gap to share."""
        gap = float(np.mean(self.gap)) if self.n and self.can_be_shared else 0.0
        return float(np.mean(self.taken)) / gap if gap else math.nan

    @property
    def per_seed(self) -> tuple[float, ...]:
        """(seeds,) E + (D_i − E G_i) / mean G: numbers per seed whose mean is E.

        Their spread is that of E, to first order in the spread of the gap; the plain D_i / G_i
        would make much of a seed with a small gap.
        """
        gap = np.asarray(self.gap)
        if not math.isfinite(self.value):
            return (math.nan,) * self.n
        return tuple((self.value + (self.taken - self.value * gap) / gap.mean()).tolist())

    def p_beyond(self, share: float, side: Literal["below", "above"]) -> float:
        """The one-sided t test that E lies beyond `share`, given a gap above 0."""
        if not self.is_finite:
            return 1.0
        return p_beyond(self.taken - share * np.asarray(self.gap), 0.0, side)

    @property
    def interval(self) -> Interval:
        """Fieller's 95 % interval; infinite where the gap itself may be 0, NaN where it has no
        shares."""
        if not self.can_be_shared:
            return Interval(math.nan, math.nan, math.nan, math.nan, self.n)
        low, high = fieller(self.taken, np.asarray(self.gap))
        spread = float(np.std(self.per_seed, ddof=1)) if self.n > 1 else math.nan
        return Interval(self.value, low, high, spread, self.n)


def fieller(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
    """The interval of mean(numerator) / mean(denominator) of paired values, at 95 %.

    All θ with |mean(x − θ y)| ≤ t · se(x − θ y). NaN for a single pair; (−inf, inf) where the mean
    of the denominator does not differ from 0, so that no θ can be ruled out on one side.
    Fieller 1954, https://doi.org/10.1111/j.2517-6161.1954.tb00159.x

    >>> fieller(np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0]))
    (0.5, 0.5)
    """
    n = len(numerator)
    if n < 2:
        return math.nan, math.nan
    quantile = float(stdtrit(n - 1, (1 + at.CONFIDENCE.value) / 2))
    (xx, xy), (_, yy) = np.cov(numerator, denominator, ddof=1) * quantile**2 / n
    x, y = float(np.mean(numerator)), float(np.mean(denominator))
    a, b, c = y * y - yy, x * y - xy, x * x - xx
    if a <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(b * b - a * c, 0.0))
    return float((b - root) / a), float((b + root) / a)


@dataclass(frozen=True)
class Judged:
    """A share with its place among the others: p values after Holm's correction over them."""

    status: ShareStatus
    p_main: float  # that it exceeds a half
    p_contributor: float  # a fifth
    p_none: float  # that it stays within a tenth, either way
    p_widens: float  # that it lies below minus a fifth
    why: str = ""  # what keeps it undetermined, where that is not the interval

    @property
    def widens(self) -> bool:
        """Whether the arm surely adds more than a fifth to the gap."""
        return not self.why and self.p_widens <= ALPHA


def judge_shares(
    shares: Sequence[Share], moved: Sequence[bool], sound: Sequence[str], *, n_open: int = 0
) -> list[Judged]:
    """The status of each share, among all that a study asks about.

    `moved` is whether the manipulation checks of an arm hold: without it nothing can be ruled out.
    `sound` holds a reason for each share that may not be judged, such as a positive control that
    did not react; "" where there is none. `n_open` more shares are asked about and not yet known:
    their p is 1, so that no answer is taken back when they come.
    """

    def corrected(p_values: list[float]) -> list[float]:
        return holm([*p_values, *[1.0] * n_open])[: len(shares)]

    main = corrected([_above(one, at.SHARE_MAIN.value) for one in shares])
    contributor = corrected([_above(one, at.SHARE_CONTRIBUTOR.value) for one in shares])
    none = corrected([_within(one, at.SHARE_NONE.value) for one in shares])
    widens = corrected([one.p_beyond(-at.SHARE_CONTRIBUTOR.value, "below") for one in shares])
    p_values = zip(main, contributor, none, widens, strict=True)
    return [_judge(*row) for row in zip(shares, moved, sound, p_values, strict=True)]


def _above(share: Share, limit: float) -> float:
    """That the arm takes more than `limit` of the gap, and not by spoiling the reference alone.

    Where an arm treats the accused network, that network must gain: a gap closes as well when both
    are ruined. An arm on the reference alone is meant to spoil it.
    """
    p = share.p_beyond(limit, "above")
    return max(p, _p_gain(share)) if share.treats_accused else p


def _within(share: Share, limit: float) -> float:
    """That |E| < limit: to widen the gap is to change it, no less than to close it.

    Both one-sided tests must reject, so that p is the larger one (TOST, Schuirmann 1987).
    """
    return max(share.p_beyond(limit, "below"), share.p_beyond(-limit, "above"))


def _p_gain(share: Share) -> float:
    return p_beyond(share.accused_gain, 0.0, "above")


def _judge(
    share: Share, moved: bool, reason: str, p_values: tuple[float, float, float, float]
) -> Judged:
    main, contributor, none, _ = p_values

    def judged(status: ShareStatus, why: str = "") -> Judged:
        return Judged(status, *p_values, why)

    if reason:
        return judged("undetermined", reason)
    if not moved:
        return judged("undetermined", "its manipulation check failed or is missing")
    if main <= ALPHA:
        return judged("main cause")
    if contributor <= ALPHA:
        return judged("contributor")
    if _is_spoiled(share):
        return judged("undetermined", "the gap shrank, and the accused network did not gain")
    return judged("not a cause" if none <= ALPHA else "undetermined")


def _is_spoiled(share: Share) -> bool:
    """Whether the gap closes without a sure gain of a treated accused."""
    closes = share.p_beyond(at.SHARE_CONTRIBUTOR.value, "above") <= ALPHA
    return closes and share.treats_accused and _p_gain(share) > ALPHA


def seeds_for_width(spread: float, half_width: float) -> int | None:
    """The smallest n with t · spread / √n ≤ half_width; None beyond 1000 seeds.

    `spread` is the standard deviation of a share over seeds.

    >>> seeds_for_width(0.3, 0.25)
    9
    """
    n = np.arange(2, MAX_SEEDS + 1)
    widths = stdtrit(n - 1, (1 + at.CONFIDENCE.value) / 2) * spread / np.sqrt(n)
    enough = np.flatnonzero(widths <= half_width)
    return int(n[enough[0]]) if len(enough) else None


@dataclass(frozen=True)
class Interaction:
    """E_both − E_first − E_second of two arms and both together, with its interval over seeds."""

    first: str
    second: str
    both: str
    interval: Interval

    @property
    def reads(self) -> str:
        """What its sign says."""
        if not enough_seeds(self.interval.n):
            return f"not known from fewer than {at.MIN_SEEDS.value:g} seeds"
        if self.interval.high < 0:
            return "they overlap: together they take less than the sum of both"
        if self.interval.low > 0:
            return "they need each other: together they take more than the sum of both"
        return "no interaction beyond chance"


def interaction(names: tuple[str, str, str], shares: tuple[Share, Share, Share]) -> Interaction:
    """The 2 × 2 of two arms; `names` and `shares` of the first, the second and both."""
    first, second, both = (np.asarray(one.per_seed) for one in shares)
    return Interaction(*names, t_interval(both - first - second))
