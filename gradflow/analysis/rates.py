"""Rates: by how much a gradient changes from one layer to the next, towards the input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gradflow.analysis import thresholds
from gradflow.analysis.layers import Layer, body, main_path
from gradflow.analysis.profile import SMALLEST, layer_table, typical
from gradflow.record.trace import Trace

Label = Literal["vanishing", "healthy", "exploding", "unknown"]


@dataclass(frozen=True)
class Rate:
    """The change of a gradient size per layer, on the way from output to input.

    The slope of log10 of the size over the depth, with an intercept for each stage, by least
    squares: a step between stages, where width and resolution change, does not count.
    """

    decades_per_layer: float  # below 0 it shrinks towards the input, above 0 it grows
    n_layers: int

    @property
    def growth(self) -> float:
        """λ: the factor of the squared size per layer, as in the theory of BatchNorm networks.

        Yang et al. 2019, https://arxiv.org/abs/1902.08129
        """
        return float(10 ** (2 * self.decades_per_layer))

    @property
    def decades(self) -> float:
        """Over the whole depth: the rate times the number of steps from the last to the first."""
        return self.decades_per_layer * (self.n_layers - 1)

    @property
    def label(self) -> Label:
        """Vanishing or exploding where it changes more than ten-fold over the depth."""
        margin = thresholds.VANISHING_DECADES.value
        if not np.isfinite(self.decades):
            return "unknown"
        if abs(self.decades) <= margin:
            return "healthy"
        return "vanishing" if self.decades < 0 else "exploding"


def rate(profile: np.ndarray, stages: Sequence[str] | None = None) -> Rate:
    """The rate of one profile (layers,), input first; one stage unless `stages` says otherwise.

    >>> rate(np.array([1e-3, 1e-2, 1e-1, 1.0])).decades_per_layer
    -1.0
    """
    slope = float(slopes(np.asarray(profile)[np.newaxis], stages)[0])
    return Rate(slope, len(profile))


def slopes(values: np.ndarray, stages: Sequence[str] | None = None) -> np.ndarray:
    """(steps,): decades per layer towards the input of each row of `values` (steps, layers).

    Zeros, NaN and inf are left out; NaN where no stage has two layers left.
    """
    values = np.asarray(values, dtype=np.float64)
    n_steps, n_layers = values.shape
    names = [""] * n_layers if stages is None else list(stages)
    if len(names) != n_layers:
        raise ValueError(f"Expected one stage for each of {n_layers} layers, but got {len(names)}.")
    usable = np.isfinite(values) & (values > 0)
    logs = np.log10(values, where=usable, out=np.zeros_like(values))
    member = np.array([[name == stage for stage in dict.fromkeys(names)] for name in names], float)
    depth = np.arange(n_layers, 0, -1.0)  # counted from the output: it grows towards the input
    n = usable @ member  # (steps, stages)
    mean_depth = np.divide((usable * depth) @ member, n, where=n > 0, out=np.zeros_like(n))
    centred = (depth - mean_depth @ member.T) * usable
    spread = (centred**2).sum(axis=1)
    none = np.full(n_steps, np.nan)
    found: np.ndarray = np.divide(
        (centred * logs).sum(axis=1), spread, where=spread > 1e-9, out=none
    )
    return found


def trace_rate(
    trace: Trace, size: str, steps: np.ndarray | None = None, layers: Sequence[Layer] | None = None
) -> Rate:
    """The rate of a gradient size over `steps` (a mask; by default all): of the typical value."""
    layers = body(main_path(trace)) if layers is None else layers
    table = layer_table(trace, size, layers).values
    profile = typical(table if steps is None else table[steps])
    is_gone = profile == SMALLEST
    if is_gone.sum() == np.isfinite(profile).sum():
        profile = np.full_like(profile, np.nan)  # without any gradient there is no rate
    elif is_gone.any():
        return rate(profile)  # an intercept for each stage could hide that a whole stage is gone
    return rate(profile, [layer.stage for layer in layers])
