"""What trainings came to: curves by epoch, classes, calibration, and studies."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from gradflow.analysis.statistics import mean_and_range
from gradflow.present.plots.style import (
    GUIDE,
    STYLES,
    figure_of,
    ink_on,
    legend_beside,
    new_axes,
    over_a_strip,
    styles,
)


def curves_plot(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    lr: Sequence[float],
    ylabel: str,
    title: str,
    axes: tuple[Axes, Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Training (thin) and validation (thick) by epoch, with the learning rate below.

    `curves` maps a network to its training and its validation values, (seeds, epochs) each, NaN
    where a seed had ended: the line is the mean over the seeds that are finite, the band their
    range, and there is a gap where none is. `lr` holds one value per epoch.
    """
    top, bottom = axes or over_a_strip(7.0, 4.2)
    for (name, parts), style in zip(curves.items(), styles(curves), strict=True):
        for values, part, width in zip(parts, ("training", "validation"), (0.8, 1.8), strict=True):
            mean, low, high = mean_and_range(values)
            epochs = np.arange(1, len(mean) + 1)
            look = {**style, "marker": style["marker"] if part == "validation" else ""}
            top.plot(
                epochs, mean, label=f"{name}, {part}", lw=width,
                markersize=4, markevery=max(1, len(epochs) // 12), **look,
            )  # fmt: skip
            top.fill_between(epochs, low, high, color=style["color"], alpha=0.15, lw=0)
    top.set_ylabel(ylabel)
    top.set_title(title, fontsize=10)
    legend_beside(top)
    top.grid(axis="y", alpha=0.3)
    bottom.step(np.arange(1, len(lr) + 1), lr, where="mid", color=GUIDE, lw=1.2)
    bottom.set_yscale("log")
    ends = rate_ticks(lr)
    bottom.set_yticks(ends, [f"{rate:.2g}" for rate in ends])
    bottom.yaxis.set_minor_locator(NullLocator())
    bottom.set(xlabel="epoch", ylabel="learning\nrate")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    return top, bottom


def rate_ticks(lr: Sequence[float]) -> list[float]:
    """The lowest and the highest learning rate above zero: a low axis has room for two.

    >>> rate_ticks([1e-3, 1e-4, 0.0])
    [0.0001, 0.001]
    """
    above = [rate for rate in lr if rate > 0]
    return sorted({min(above), max(above)}) if above else []


CONFUSION_COLORS = "Blues"
MOST_COUNTED = 30  # classes: a count in each cell of 100 would make an SVG of 3.5 MB
COLOURS_ONLY = 12  # the side of a larger matrix, in cells of a small one


def confusion_plot(
    matrix: np.ndarray, class_names: Sequence[str], title: str, ax: Axes | None = None
) -> Axes:
    """Counts in the cells, rows the true class; the colour is the share of the row.

    `matrix` is (classes, classes) of counts. A row without images stays white. Beyond 30 classes
    there is no room for counts nor for every name: colours are left, and every k-th name.
    """
    n = len(class_names)
    if matrix.shape != (n, n):
        raise ValueError(
            f"Expected `matrix` of shape {(n, n)}, one row and column for each class, "
            f"but got {matrix.shape}."
        )
    side = n if n <= MOST_COUNTED else COLOURS_ONLY
    ax = new_axes(1.6 + 0.62 * side, 1.4 + 0.55 * side) if ax is None else ax
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    image = ax.imshow(shares, cmap=CONFUSION_COLORS, vmin=0, vmax=1)
    for row, column in np.ndindex(n, n) if n <= MOST_COUNTED else ():
        ax.text(
            column, row, f"{matrix[row, column]:g}", ha="center", va="center", fontsize=8,
            color=ink_on(image.to_rgba(shares[row, column])),
        )  # fmt: skip
    stride = -(-n // MOST_COUNTED)
    places, names = range(0, n, stride), class_names[::stride]
    ax.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(places, names)
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        label.set(parse_math=False, fontsize=8)
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.set_title(title, fontsize=10)
    figure_of(ax).colorbar(image, ax=ax, label="share of the true class")
    return ax


def reliability_plot(
    bins: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    title: str,
    axes: tuple[Axes, Axes] | None = None,
) -> tuple[Axes, Axes]:
    """How often a network is right when it is so sure; on the diagonal it is calibrated.

    `bins` maps a network to the mean confidence, accuracy and count of each bin, (bins,) each.
    Below stands how many images each bin holds; empty bins are left out.
    """
    ax, below = axes or over_a_strip(6.0, 5.2)
    ax.plot([0, 1], [0, 1], color=GUIDE, lw=1, linestyle=":", label="calibrated")
    for i, ((name, (confidence, accuracy, n)), style) in enumerate(
        zip(bins.items(), styles(bins), strict=True)
    ):
        known = n > 0
        ax.plot(confidence[known], accuracy[known], label=name, lw=1.4, markersize=5, **style)
        width = 1 / len(n) / len(bins)
        places = (np.arange(len(n)) + 0.5) / len(n) + (i - (len(bins) - 1) / 2) * width
        below.bar(places, n, 0.9 * width, color=style["color"])
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.3)
    legend_beside(ax)
    below.set(xlabel="probability of the predicted class", ylabel="images")
    below.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    return ax, below


# -- studies ---------------------------------------------------------------------------------------


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
    and `zones` names the values from which on it is another, drawn as lines. An interval that
    leaves `limits` ends in an arrow; NaN leaves a row without one.
    """
    ax = new_axes(7.0, 1.4 + 0.38 * len(names)) if ax is None else ax
    if np.isfinite(limits).all():
        ax.set_xlim(*limits)
    for index, (label, place) in enumerate((zones or {}).items()):  # in steps: they may be near
        ax.axvline(place, color=GUIDE, lw=0.9, ls=":")
        ax.text(place, len(names) - 0.6 + 0.35 * index, f" {label}", fontsize=7, va="bottom")
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
