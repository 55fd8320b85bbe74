"""Rates: by how much a gradient changes along a path, towards the input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gradflow.analysis import thresholds
from gradflow.analysis.layers import Layer
from gradflow.analysis.profile import SMALLEST, layer_table, typical
from gradflow.record.trace import Trace

Label = Literal["vanishing", "healthy", "exploding", "unknown"]


@dataclass(frozen=True)
class Drop:
    """The largest fall from one layer to the layer before it."""

    decades: float  # below 0
    index: int  # of the layer that receives less, counted from the input


@dataclass(frozen=True)
class Rate:
    """How a gradient size changes along a path, on the way from output to input.

    `values` (layers,), input first: NaN where nothing was measured. A zero is the smallest gradient
    there is. Zeros that end before the input are a branch that begins as the identity, round which
    the gradient goes; they are left out.
    """

    values: np.ndarray

    @property
    def decades(self) -> float:
        """log10 of the first layer over the last: below 0 it shrinks towards the input.

        Minus infinity where no layer has any gradient; 0 where the first alone has one, all others
        being branches that begin as the identity.
        """
        if 0 < self.n_without == np.isfinite(self.values).sum():
            return -np.inf
        logs = self._logs()
        known = logs[np.isfinite(logs)]
        is_known = len(known) > 1 or (len(known) == 1 and (self.values == 0).any())
        return float(known[0] - known[-1]) if is_known else np.nan

    @property
    def span(self) -> float:
        """log10 of the largest over the smallest."""
        known = self._logs()[np.isfinite(self._logs())]
        return float(np.ptp(known)) if len(known) > 1 else np.nan

    @property
    def drop(self) -> Drop | None:
        """The largest single fall towards the input; None where it never falls."""
        logs = self._logs()
        places = np.flatnonzero(np.isfinite(logs))
        falls = -np.diff(logs[places])
        if not len(falls) or falls.min() >= 0:
            return None
        worst = int(falls.argmin())
        return Drop(float(falls[worst]), int(places[worst]))

    @property
    def n_without(self) -> int:
        """How many layers at the input end have no gradient at all."""
        known = self.values[~np.isnan(self.values)]
        return int((known == 0).cumprod().sum())

    @property
    def decades_per_layer(self) -> float:
        """The slope of log10 over the depth, by least squares: a description, not what it comes to.

        Zeros are left out of it.
        """
        return line(self.values)[0]

    @property
    def residual(self) -> float:
        """The rms distance of log10 from the line with that slope, in decades."""
        return line(self.values)[1]

    @property
    def growth(self) -> float:
        """λ: the factor of the squared size per layer, as in the theory of BatchNorm networks.

        Yang et al. 2019, https://arxiv.org/abs/1902.08129
        """
        return float(10 ** (2 * self.decades_per_layer))

    @property
    def label(self) -> Label:
        """Vanishing or exploding where first and last layer differ more than ten-fold.

        That says what the gradient does, not whether the network trains.
        """
        if np.isinf(self.values).any():
            return "exploding"
        if np.isnan(self.decades):
            return "unknown"
        if abs(self.decades) <= thresholds.VANISHING_DECADES.value:
            return "healthy"
        return "vanishing" if self.decades < 0 else "exploding"

    def _logs(self) -> np.ndarray:
        """(layers,): log10, NaN for what is left out; zeros at the input end are `SMALLEST`."""
        values = np.where(np.isfinite(self.values), self.values, np.nan)
        if not (values > 0).any():
            return np.full(len(values), np.nan)  # without any gradient there is no change
        reached = np.logical_or.accumulate(values > 0)
        values = np.where(~reached & (values == 0), SMALLEST, values)
        return np.asarray(np.log10(np.where(values > 0, values, np.nan)))


def line(values: np.ndarray) -> tuple[float, float]:
    """The line through log10 of `values` (layers,): decades per layer towards the input, and the
    rms of what it leaves. Zeros, NaN and inf are left out; NaN for fewer than two layers.
    """
    depth = -np.flatnonzero(known := np.isfinite(values) & (values > 0))  # grows towards the input
    if len(depth) < 2:
        return np.nan, np.nan
    logs = np.log10(values[known])
    fit = np.polyfit(depth, logs, 1)
    return float(fit[0]), float(np.sqrt(np.mean((logs - np.polyval(fit, depth)) ** 2)))


def trace_rate(
    trace: Trace, size: str, steps: np.ndarray | None = None, layers: Sequence[Layer] | None = None
) -> Rate:
    """The rate of a gradient size over `steps` (a mask; by default all): of the typical value.

    Along the longest path without its classifier, or along `layers`.
    """
    table = layer_table(trace, size, layers).values
    return Rate(typical(table if steps is None else table[steps]))
