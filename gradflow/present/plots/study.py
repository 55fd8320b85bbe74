"""Means with their intervals, row by row, and answers to doses."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from gradflow.present.plots.style import GUIDE, STYLES, new_axes, styles

MARKERS = {"main cause": "D", "contributor": "s", "not a cause": "o", "undetermined": "x"}


def forest_plot(
    names: Sequence[str],
    means: np.ndarray,
    intervals: np.ndarray,
    xlabel: str,
    ax: Axes | None = None,
    *,
    statuses: Sequence[str] = (),
    zones: Mapping[str, float] | None = None,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Axes:
    """One row per name, the first at the top: its mean and its interval, and a line at zero.

    `means` (names,) and `intervals` (names, 2); `statuses` say what each is, by a sign and a word,
    and `zones` names the values at which that turns, drawn as lines. An interval that leaves
    `limits` ends in an arrow; NaN leaves a row without one.
    """
    ax = new_axes(7.0, 1.4 + 0.38 * len(names)) if ax is None else ax
    if np.isfinite(limits).all():
        ax.set_xlim(*limits)
    for label, place in (zones or {}).items():
        ax.axvline(place, color=GUIDE, lw=0.9, ls=":")
        ax.text(place, len(names) - 0.35, label, fontsize=7, ha="center", va="bottom")
    ax.axvline(0.0, color=GUIDE, lw=0.9)
    for row, (mean, (low, high)) in enumerate(zip(means, intervals, strict=True)):
        y, status = len(names) - 1 - row, statuses[row] if statuses else ""
        _interval(ax, y, low, high, limits)
        place = float(np.clip(mean, *limits)) if np.isfinite(mean) else np.nan
        ax.plot([place], [y], MARKERS.get(status, "o"), color=STYLES[0]["color"], ms=6, zorder=3)
        ax.text(1.01, y, status, transform=ax.get_yaxis_transform(), va="center", fontsize=8)
    ax.set_yticks(range(len(names))[::-1], list(names), fontsize=8)
    ax.set_ylim(-0.7, len(names) + 0.25)
    ax.set_xlabel(xlabel)
    ax.grid(axis="x", alpha=0.3)
    return ax


def _interval(ax: Axes, y: float, low: float, high: float, limits: tuple[float, float]) -> None:
    """The line from low to high; an arrow where it goes on beyond the axis."""
    if np.isnan(low) or np.isnan(high):
        return
    left, right = np.clip([low, high], *limits)
    color = STYLES[0]["color"]
    ax.plot([left, right], [y, y], "-", color=color, lw=1.6, solid_capstyle="butt")
    for end, cut, marker in ((left, low < limits[0], "<"), (right, high > limits[1], ">")):
        if cut:
            ax.plot([end], [y], marker, color=color, ms=6, clip_on=False)


def dose_response_plot(
    responses: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    dose: str,
    outcome: str,
    ax: Axes | None = None,
    *,
    log: bool = False,
) -> Axes:
    """One line per network: the outcome at each dose, with its interval over seeds.

    `responses` maps a network to its doses (n,), means (n,) and intervals (n, 2). With `log` the
    doses stand on a logarithmic axis. A network without doses is not drawn, but keeps its style.
    """
    ax = new_axes(6.0, 3.6) if ax is None else ax
    looks = styles(responses)
    for (label, (doses, means, intervals)), style in zip(responses.items(), looks, strict=True):
        if not len(doses):
            continue
        order = np.argsort(doses)
        spread = np.nan_to_num(np.abs(intervals - means[:, np.newaxis]))[order].T
        ax.errorbar(
            doses[order], means[order], yerr=spread, label=label, capsize=3, lw=1.4,
            markersize=4, **style,
        )  # fmt: skip
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())  # over six decades they say nothing
    ax.set_xlabel(dose)
    ax.set_ylabel(outcome)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax
