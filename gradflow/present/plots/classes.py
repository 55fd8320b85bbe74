"""Class by class and image by image: confusion and calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradflow.present.plots.style import (
    GUIDE,
    figure_of,
    ink_on,
    legend_beside,
    new_axes,
    new_figure,
    styles,
)

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
    if axes is None:
        ax, below = new_figure(6.0, 5.2).subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]}
        )
    else:
        ax, below = axes
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
