"""Loss and accuracy over the epochs: arrays in, Axes out."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from gradflow.analysis.statistics import mean_and_range
from gradflow.present.plots.style import GUIDE, legend_beside, new_figure, styles


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
    if axes is None:
        top, bottom = new_figure(7.0, 4.2).subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]}
        )
    else:
        top, bottom = axes
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
