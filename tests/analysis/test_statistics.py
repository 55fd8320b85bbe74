"""Intervals and tests over seeds against scipy, by hand, and against a simulation."""

import math
from typing import Literal

import numpy as np
import pytest
from scipy import stats

from gradflow.analysis.statistics import (
    MAX_SEEDS,
    holm,
    p_beyond,
    p_equivalent,
    paired_over_seeds,
    paired_proportions,
    seeds_needed,
    t_interval,
    wilson,
)
from gradflow.analysis.thresholds import ALPHA

SEEDS = np.array([0.3, -0.2, 0.8, 0.5, 0.1])


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_is_that_of_scipy(n: int) -> None:
    found = t_interval(SEEDS[:n])
    expected = stats.ttest_1samp(SEEDS[:n], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(SEEDS[:n].mean())
    assert found.n == n


def test_what_is_not_finite_is_left_out_and_one_seed_has_no_interval() -> None:
    bad = [float("nan"), float("inf")]
    assert t_interval([*SEEDS, *bad]) == t_interval(SEEDS)
    one = t_interval([2.0, *bad])
    assert (one.mean, one.n) == (2.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert t_interval(bad).n == 0
    assert math.isnan(t_interval(bad).mean)


@pytest.mark.parametrize("threshold", [-0.4, 0.0, 0.25, 2.0])
@pytest.mark.parametrize(("side", "alternative"), [("above", "greater"), ("below", "less")])
def test_p_beyond_is_the_one_sided_t_test(
    threshold: float, side: Literal["above", "below"], alternative: str
) -> None:
    expected = stats.ttest_1samp(SEEDS, threshold, alternative=alternative).pvalue
    assert p_beyond(SEEDS, threshold, side) == pytest.approx(expected)
    assert p_beyond([*SEEDS, float("nan")], threshold, side) == pytest.approx(expected)


def test_fewer_than_five_seeds_test_nothing() -> None:
    values = [5.0, 5.1, 5.2, 5.3]
    assert p_beyond(values, 0, "above") == 1
    assert p_beyond([*values, float("nan")], 0, "above") == 1
    assert p_beyond([*values, 5.4], 0, "above") < 0.001


def test_seeds_without_spread_stand_on_their_side() -> None:
    assert p_beyond([1.0] * 5, 0, "above") == 0
    assert p_beyond([1.0] * 5, 0, "below") == 1
    for value in (0.0, 1.0):  # on the very line
        assert p_beyond([value] * 5, value, "above") == 1
        assert p_beyond([value] * 5, value, "below") == 1
    assert p_beyond([np.nextafter(1.0, 2.0)] * 5, 1.0, "above") == 1, "rounding decides nothing"


def test_an_infinite_number_forbids_the_other_side_and_counts_as_the_furthest_on_its_own() -> None:
    values, inf = [0.2, 0.1, 0.3, 0.2, 0.1], float("inf")
    assert p_beyond([*values, inf], 1.0, "below") == 1
    assert p_beyond(values, 1.0, "below") < 0.001
    assert p_beyond([*values, inf], 0.0, "above") == p_beyond([*values, 0.3], 0.0, "above")
    assert p_beyond([inf] * 5, 0.0, "above") == 0
    assert p_beyond([-inf] * 5, 0.0, "above") == 1


@pytest.mark.parametrize("looks", [(5, 10, 20), (5, 40, 320), (5, 6, 7)])
def test_three_looks_at_one_question_decide_wrongly_in_five_of_a_hundred(
    looks: tuple[int, ...],
) -> None:
    """Whose truth is the threshold itself; at 5 % for each look it would be 11 to 13."""
    draws = np.random.default_rng(0).normal(0, 1, (20_000, looks[-1]))
    smallest = np.min(
        [stats.ttest_1samp(draws[:, :n], 0, axis=1, alternative="greater").pvalue for n in looks],
        axis=0,
    )
    error = math.sqrt(0.05 * 0.95 / len(draws))
    assert np.mean(smallest <= ALPHA.value) <= 0.05 + 3 * error
    assert np.mean(smallest <= 3 * ALPHA.value) > 0.06


def test_equivalence_is_two_one_sided_tests() -> None:
    values = np.array([0.01, -0.02, 0.03, 0.00, 0.02])
    error = values.std(ddof=1) / math.sqrt(5)
    lower = stats.t.sf((values.mean() + 0.05) / error, 4)
    upper = stats.t.cdf((values.mean() - 0.05) / error, 4)
    assert p_equivalent(values, 0.05) == pytest.approx(max(lower, upper))
    assert p_equivalent(values, 0.05) < 0.05
    assert p_equivalent(values, 0.015) > 0.05
    assert p_equivalent(values + 0.2, 0.05) > 0.99
    assert p_equivalent(values - 0.2, 0.05) > 0.99


def test_holm_against_a_worked_example() -> None:
    # https://en.wikipedia.org/wiki/Holm–Bonferroni_method, its example of four hypotheses
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_keeps_the_order_and_ends_at_one() -> None:
    assert holm([]) == []
    assert holm([0.02]) == [0.02]
    assert holm([0.9, 0.8, 0.001]) == pytest.approx([1, 1, 0.003])


def condition(values: np.ndarray, n: int, threshold: float) -> bool:
    """(t at 1 − α + t₀.₈) · sd / √n ≤ |mean − threshold|."""
    quantiles = stats.t.ppf(1 - ALPHA.value, n - 1) + stats.t.ppf(0.8, n - 1)
    return bool(quantiles * values.std(ddof=1) / math.sqrt(n) <= abs(values.mean() - threshold))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
def test_seeds_needed_is_the_smallest_number_that_is_enough(threshold: float) -> None:
    n = seeds_needed(SEEDS, threshold)
    assert n is not None
    assert condition(SEEDS, n, threshold)
    assert n == 5 or not condition(SEEDS, n - 1, threshold)


@pytest.mark.parametrize("effect", [0.4, 0.8])
def test_so_many_seeds_decide_four_times_in_five(effect: float) -> None:
    """If mean and spread are what the pilot said."""
    pilot = np.array([-1.0, 0, 1]) + effect  # mean `effect`, standard deviation 1
    n = seeds_needed(pilot, 0)
    assert n is not None
    draws = np.random.default_rng(0).normal(effect, 1, (2000, n))
    power = np.mean(
        stats.ttest_1samp(draws, 0, axis=1, alternative="greater").pvalue <= ALPHA.value
    )
    assert power == pytest.approx(0.8, abs=0.05)


def test_no_number_of_seeds_where_the_spread_or_the_distance_is_unknown() -> None:
    assert seeds_needed([1.0], 0) is None
    assert seeds_needed([], 0) is None
    assert seeds_needed([-1.0, 1.0], 0) is None
    assert seeds_needed([-1.0, 1.001], 0) is None  # more than any one trains
    assert MAX_SEEDS == 1000
    assert seeds_needed([1.0, 1.0], 0) == 5


# -- shares of the same images ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe 1998, table of examples, method 10
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Bentur 2009 in Fagerland, Lydersen & Laake 2017, 8.5
    ],
)
def test_the_paired_interval_is_that_of_published_examples(table, expected):
    assert paired_proportions(*table) == pytest.approx(expected, abs=5e-4)


def test_wilson_is_that_of_scipy():
    for n_right, n, level in ((0, 7, 0.95), (3, 7, 0.99), (27, 27, 0.95)):
        expected = stats.binomtest(n_right, n).proportion_ci(level, method="wilson")
        assert wilson(n_right, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_paired_interval_covers_the_truth():
    """Of 400 draws with true shares .8 and .65 and correlated answers, 95 % must cover .15."""
    random = np.random.default_rng(0)
    shares = [0.60, 0.20, 0.05, 0.15]  # both, only first, only second, neither
    covered = 0
    for counts in random.multinomial(60, shares, size=400):
        low, high = paired_proportions(*map(int, counts))
        covered += low <= 0.15 <= high
    assert 0.93 <= covered / 400 <= 0.99


def test_the_paired_interval_turns_around_with_the_networks():
    low, high = paired_proportions(20, 9, 3, 8)
    assert paired_proportions(20, 3, 9, 8) == pytest.approx((-high, -low))
    # Alike in everything, the ends still leave room, evenly.
    low, high = paired_proportions(20, 0, 0, 8)
    assert low == pytest.approx(-high)
    assert all(map(math.isnan, paired_proportions(0, 0, 0, 0)))


@pytest.mark.parametrize("n_seeds", [1, 2, 3, 7])
@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.9), (0.0, 0.0)])
def test_no_end_is_impossible_and_the_mean_lies_inside(n_seeds, shares):
    random = np.random.default_rng(n_seeds)
    first, second = (random.random((n_seeds, 9)) < share for share in shares)
    for level in (0.95, 0.999):
        low, high = paired_over_seeds(first, second, level)
        assert -1 <= low <= first.mean() - second.mean() <= high <= 1
        assert low < high, "nine images leave room, also where all answers are alike"


def test_seeds_that_lie_apart_widen_the_interval():
    same = np.tile(np.arange(100) < 70, (3, 1))
    apart = np.array([np.arange(100) < n for n in (40, 70, 100)])
    still = np.tile(np.arange(100) < 50, (3, 1))
    widths = [np.diff(paired_over_seeds(one, still))[0] for one in (same, apart)]
    assert widths[1] > 1.5 * widths[0]
    # The bootstrap of a difference that all images share varies by the seeds' own s²/S.
    low, high = paired_over_seeds(apart, np.zeros_like(apart))
    assert (low, high) == pytest.approx((0.4, 1.0), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_the_interval_over_seeds_covers_the_truth(n_seeds):
    """Images and seeds that differ at random in difficulty; the truth from a large sample."""
    random = np.random.default_rng(n_seeds)

    def answers(n_seeds: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        image = random.normal(1.0, 1.0, n)
        return tuple(
            image + side + random.normal(0, 0.3, (n_seeds, 1)) + random.normal(0, 1, (n_seeds, n))
            > 0
            for side in (0.25, -0.25)
        )

    first, second = answers(2000, 2000)
    truth = first.mean() - second.mean()
    found = [paired_over_seeds(*answers(n_seeds, 40)) for _ in range(200)]
    covered = sum(low <= truth <= high for low, high in found)
    assert covered >= 0.94 * 200
