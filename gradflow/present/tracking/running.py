"""A trace that grows, kept small: every k-th step, and means over all of them.

An epoch costs what was recorded in it, and not what was recorded before.
"""

import numpy as np

from gradflow.analysis.profile import GRADIENT_SIZES, layer_table, weight_table
from gradflow.record.trace import Table, Trace


class ThinnedTable:
    """Every k-th row of a table that grows, at most `most` of them; k doubles when it is full."""

    def __init__(self, most: int) -> None:
        self.every = 1
        self._most = most
        self._n_seen = 0
        self._table: Table | None = None

    def add(self, table: Table) -> None:
        """Further rows, which come behind those before."""
        number = self._n_seen + np.arange(len(table.steps))
        self._n_seen += len(table.steps)
        self._append(_rows(table, number % self.every == 0))
        while self._table is not None and len(self._table.steps) > self._most:
            self.every *= 2
            self._table = _rows(self._table, np.arange(len(self._table.steps)) % 2 == 0)

    def _append(self, table: Table) -> None:
        before = self._table
        if before is not None:
            steps = np.concatenate([before.steps, table.steps])
            table = Table(steps, table.sites, np.concatenate([before.values, table.values]))
        self._table = table

    @property
    def table(self) -> Table | None:
        """The rows that were kept; None before any came."""
        return self._table


class GeometricMean:
    """exp(mean of log) over the rows of a table that grows; see `geometric_mean`."""

    def __init__(self) -> None:
        self.sites: tuple[str, ...] = ()
        self._logs = self._n = np.zeros(0)

    def add(self, table: Table) -> None:
        """Further rows. Zero, NaN and inf are left out."""
        if not self.sites:
            self.sites = table.sites
            self._logs = self._n = np.zeros(len(table.sites))
        usable = np.isfinite(table.values) & (table.values > 0)
        values = np.asarray(table.values, dtype=np.float64)
        logs = np.log(values, where=usable, out=np.zeros_like(values))
        self._logs = self._logs + logs.sum(axis=0)
        self._n = self._n + usable.sum(axis=0)

    @property
    def values(self) -> np.ndarray:
        """(sites,), NaN where nothing remained."""
        nothing = np.full(len(self.sites), np.nan)
        return np.asarray(np.exp(np.divide(self._logs, self._n, where=self._n > 0, out=nothing)))


class RunningTrace:
    """What pictures and profiles need of everything recorded so far."""

    def __init__(self, most_steps: int) -> None:
        self.weights = ThinnedTable(most_steps)
        self.weight_profile = GeometricMean()
        self.sizes = {name: GeometricMean() for name in GRADIENT_SIZES}

    def add(self, trace: Trace, before: int | None = None) -> None:
        """The steps of `trace`, of a longer one those below `before`."""
        keep = np.ones(len(trace), dtype=bool) if before is None else trace.steps < before
        if not keep.any():
            return
        weights = _rows(weight_table(trace), keep)
        self.weights.add(weights)
        self.weight_profile.add(weights)
        for name, mean in self.sizes.items():
            try:
                mean.add(_rows(layer_table(trace, name), keep))
            except (KeyError, ValueError):  # not recorded, or a network without depth
                continue


def _rows(table: Table, keep: np.ndarray) -> Table:
    return Table(table.steps[keep], table.sites, table.values[keep])
