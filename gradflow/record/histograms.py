"""Histograms of weights and gradients: how many elements lie between which powers of two.

The bins are fixed, so that steps, layers and networks compare, and one read suffices. Counting
needs torch (exponents.py), what was counted does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# The bins of |x|: x = 0; 2^e <= |x| < 2^(e + 1) for each exponent e from LOWEST to HIGHEST, of
# which the first has what is smaller too, and the last what is larger; NaN and inf. What is below
# 2^-64 = 5e-20 moves no float32 weight, not even after Adam has divided it by its ε.
LOWEST, HIGHEST = -64, 15
EXPONENTS = np.arange(LOWEST, HIGHEST + 1)
N_BINS = len(EXPONENTS) + 2
ZERO, NONFINITE = 0, N_BINS - 1

WEIGHTS, GRADIENTS = "weight_histogram", "grad_histogram"
HISTOGRAMS = (WEIGHTS, GRADIENTS)  # columns of the records


@dataclass(frozen=True, eq=False)
class Histograms:
    """Counts of the parameters at the full steps, before each, as the optimizer receives them.

    A parameter of which nothing was counted in a step has only zeros there.
    """

    steps: np.ndarray  # (steps,) int64, increasing
    sites: tuple[str, ...]  # parameters, in depth order
    counts: dict[str, np.ndarray]  # of HISTOGRAMS -> (steps, sites, N_BINS) int64

    def __len__(self) -> int:
        return len(self.steps)

    def shares(self, name: str) -> np.ndarray:
        """(steps, sites, exponents): of all elements. NaN where nothing was counted."""
        counts = self.counts[name]
        n = counts.sum(axis=2, keepdims=True)
        shares: np.ndarray = np.divide(counts, n, where=n > 0, out=np.full(counts.shape, np.nan))
        return shares[..., ZERO + 1 : NONFINITE]

    def part(self, steps: np.ndarray) -> "Histograms":
        """Those of these indices."""
        counts = {name: table[steps] for name, table in self.counts.items()}
        return Histograms(self.steps[steps], self.sites, counts)

    def cells(
        self, steps: np.ndarray, sites: Sequence[str]
    ) -> dict[str, dict[tuple[int, int], np.ndarray]]:
        """Of each, the counts by the place of step and site among these, where there are some."""
        rows = np.searchsorted(steps, self.steps).tolist()
        columns = [sites.index(site) for site in self.sites]
        return {
            name: {(rows[i], columns[j]): table[i, j]
                   for i, j in np.argwhere(table.any(axis=2)).tolist()}
            for name, table in self.counts.items()
        }  # fmt: skip


def span(counts: np.ndarray) -> slice:
    """From the first bin that holds something to the last; empty, up to 0, where none does.

    >>> span(np.array([0, 3, 0, 1, 0])), span(np.zeros(3))
    (slice(1, 4, None), slice(0, 0, None))
    """
    there = np.flatnonzero(counts).tolist()
    return slice(there[0], there[-1] + 1) if there else slice(0, 0)


def occupied(
    steps: np.ndarray, sites: Sequence[str], counts: Mapping[str, np.ndarray]
) -> Histograms | None:
    """From counts (steps, sites, N_BINS): the steps and sites at which there are some."""
    n = sum((table.sum(axis=2) for table in counts.values()), np.zeros((len(steps), len(sites))))
    rows, columns = (np.flatnonzero(n.any(axis=axis)).tolist() for axis in (1, 0))
    if not rows:
        return None
    return Histograms(
        steps[rows],
        tuple(sites[i] for i in columns),
        {name: table[np.ix_(rows, columns)] for name, table in counts.items()},
    )


def joined(several: Sequence[Histograms | None]) -> Histograms | None:
    """One after the other; a site that comes up later stands behind the earlier ones."""
    known = [one for one in several if one is not None]
    if not known:
        return None
    sites = tuple(dict.fromkeys(site for one in known for site in one.sites))
    steps = np.concatenate([one.steps for one in known])
    counts = {
        name: np.zeros((len(steps), len(sites), N_BINS), dtype=np.int64) for name in HISTOGRAMS
    }
    start = 0
    for one in known:
        columns = [sites.index(site) for site in one.sites]
        for name, table in one.counts.items():
            counts[name][start : start + len(one), columns] = table
        start += len(one)
    return Histograms(steps, sites, counts)
