"""Shares of a gap: Fieller's interval against the test that it inverts, the rules on both sides."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from gradflow.analysis import thresholds as at
from gradflow.analysis.shares import (
    Share,
    fieller,
    gap_status,
    interaction,
    judge_shares,
    seeds_for_width,
)

# Five seeds: a gap of about 0.4 nats, of which an arm takes about `share`.
GAP = np.array([0.38, 0.41, 0.44, 0.36, 0.40])
NOISE = np.array([0.010, -0.006, 0.004, -0.012, 0.004])


def share(value: float, *, noise: float = 1.0, reference_gain: float = 0.0) -> Share:
    taken = value * GAP + noise * NOISE
    return Share(
        tuple(GAP), tuple(taken + reference_gain), tuple(np.full(len(GAP), reference_gain))
    )


def status(one: Share) -> str:
    return judge_shares([one], [True], [""])[0].status


def test_fieller_holds_exactly_the_shares_that_the_t_test_does_not_reject() -> None:
    taken = 0.3 * GAP + NOISE

    def p(theta: float) -> float:
        return float(stats.ttest_1samp(taken - theta * GAP, 0.0).pvalue) - 0.05

    low, high = fieller(taken, GAP)
    assert low == pytest.approx(brentq(p, -2, 0.3), rel=1e-9)
    assert high == pytest.approx(brentq(p, 0.3, 2), rel=1e-9)


def test_interval_is_infinite_where_the_gap_may_be_zero() -> None:
    assert fieller(np.array([0.1, 0.2, 0.1]), np.array([0.3, -0.4, 0.2])) == (-math.inf, math.inf)


def test_one_seed_has_a_share_and_no_interval() -> None:
    one = Share((0.4,), (0.1,), (0.0,))
    assert one.value == pytest.approx(0.25)
    assert math.isnan(one.interval.low)
    assert math.isnan(one.interval.high)


def test_share_is_the_difference_in_differences_over_the_gap() -> None:
    # Both networks gain 0.3 nats: the gap stays. The accused gains 0.2 more: half of it goes.
    both = Share((0.4, 0.4, 0.4), (0.3, 0.3, 0.3), (0.3, 0.3, 0.3))
    half = Share((0.4, 0.4, 0.4), (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
    assert both.value == 0.0
    assert half.value == pytest.approx(0.5)


def test_shares_per_seed_have_the_mean_of_the_share_and_its_spread_to_first_order() -> None:
    one = share(0.3)
    assert np.mean(one.per_seed) == pytest.approx(one.value, rel=1e-12)
    low, high = one.interval.low, one.interval.high
    half = stats.t.ppf(0.975, 4) * np.std(one.per_seed, ddof=1) / math.sqrt(5)
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize(
    ("threshold", "above", "below"),
    [
        (at.SHARE_MAIN.value, "main cause", "contributor"),
        (at.SHARE_CONTRIBUTOR.value, "contributor", "undetermined"),
        (at.SHARE_NONE.value, "undetermined", "not a cause"),
    ],
)
def test_status_turns_at_its_threshold(threshold: float, above: str, below: str) -> None:
    assert status(share(threshold + 0.03, noise=0.5)) == above
    assert status(share(threshold - 0.03, noise=0.5)) == below


def test_no_share_passes_both_tests_so_that_their_order_decides_nothing() -> None:
    """At a true share of 0.15, half-way between the limits, both reject in none of the studies."""
    random = np.random.default_rng(0)
    for noise in random.normal(0, 0.01, (2000, 5)):
        one = Share(tuple(GAP), tuple(0.15 * GAP + noise), (0.0,) * 5)
        (judged,) = judge_shares([one], [True], [""])
        assert max(judged.p_contributor, judged.p_none) > at.ALPHA.value


@pytest.mark.parametrize(
    ("value", "is_none", "widens"),
    [(-3.0, False, True), (-0.23, False, True), (-0.17, False, False), (-0.07, True, False)],
)
def test_an_arm_that_surely_widens_the_gap_is_not_called_no_cause(
    value: float, is_none: bool, widens: bool
) -> None:
    """It changed the gap, and by more than what "not a cause" rules out."""
    (judged,) = judge_shares([share(value, noise=0.5)], [True], [""])
    assert judged.status == ("not a cause" if is_none else "undetermined")
    assert judged.widens == widens


@pytest.mark.parametrize(("n_seeds", "mean", "spread", "status"), [
    (5, 0.4, 2, "yes"), (4, 0.4, 2, "undetermined"), (5, 0.03, 8, "undetermined"),
    (5, -0.4, 2, "no"), (5, 0.0, 0.2, "no"),
    (5, 0.02, 0.2, "no"),  # surely above zero, and surely within the margin: both tests reject
])  # fmt: skip
def test_a_gap_is_sure_over_five_seeds_above_zero_and_not_within_the_margin(
    n_seeds: int, mean: float, spread: float, status: str
) -> None:
    assert gap_status((mean + spread * NOISE)[:n_seeds], margin=0.05) == status


@pytest.mark.parametrize(
    ("one", "moved", "sound", "why"),
    [
        (share(0.3, noise=20), True, "", ""),  # a wide interval
        (share(0.0), False, "", "manipulation check"),
        (share(0.3), False, "", "manipulation check"),
        (share(0.8), False, "", "manipulation check"),
        (share(-3.0), False, "", "manipulation check"),
        (share(0.8), True, "no positive control reacted", "no positive control reacted"),
        # The accused loses 0.14 and the reference 0.5; then the share alone is surely a fifth.
        (share(0.9, reference_gain=-0.5), True, "", "did not gain"),
        (share(0.25, noise=0.5, reference_gain=-0.5), True, "", "did not gain"),
    ],
)
def test_what_may_not_be_judged_is_undetermined_and_says_why(
    one: Share, moved: bool, sound: str, why: str
) -> None:
    (judged,) = judge_shares([one], [moved], [sound])
    assert (judged.status, judged.widens) == ("undetermined", False)
    assert why in judged.why
    assert bool(why) == bool(judged.why)


def test_an_arm_on_the_reference_alone_is_meant_to_spoil_it() -> None:
    deficit = 0.8 * GAP + NOISE
    spoils = Share(tuple(GAP), (0.0,) * 5, tuple(-deficit), treats_accused=False)
    assert status(spoils) == "main cause"


def test_holm_asks_more_of_each_arm_where_there_are_many() -> None:
    weak = share(0.3, noise=4.0)
    alone = judge_shares([weak], [True], [""])[0].p_contributor
    among = judge_shares([weak, *[share(0.0, noise=8.0)] * 9], [True] * 10, [""] * 10)[0]
    assert among.p_contributor == pytest.approx(10 * alone)


def test_interaction_is_what_both_take_beyond_the_sum() -> None:
    names = ("a", "b", "a + b")
    overlap = interaction(names, (share(0.4, noise=0), share(0.5, noise=0), share(0.6, noise=0.5)))
    assert overlap.interval.mean == pytest.approx(-0.3)
    assert "overlap" in overlap.reads
    none = interaction(names, (share(0.4, noise=0), share(0.2, noise=0), share(0.6, noise=0.5)))
    assert none.interval.mean == pytest.approx(0.0, abs=1e-12)
    assert "no interaction" in none.reads


@pytest.mark.parametrize(("spread", "half_width"), [(0.3, 0.25), (0.1, 0.25), (1.0, 0.1)])
def test_seeds_for_width_is_the_smallest_number_that_suffices(
    spread: float, half_width: float
) -> None:
    n = seeds_for_width(spread, half_width)
    assert n is not None

    def width(n: int) -> float:
        return float(stats.t.interval(0.95, n - 1, scale=spread / math.sqrt(n))[1])

    assert width(n) <= half_width
    assert n == 2 or width(n - 1) > half_width


def test_parts_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one number per seed in every part"):
        Share((0.4, 0.4), (0.1,), (0.0, 0.0))
