"""Differences of shares: published examples, SciPy's Wilson, simulated coverage, possible ends."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from gradflow.analysis.proportions import paired_over_seeds, paired_proportions, wilson


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
        expected = binomtest(n_right, n).proportion_ci(level, method="wilson")
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
