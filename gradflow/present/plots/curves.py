"""Loss and accuracy over the epochs: arrays in, Axes out."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradflow.present.plots.style import new_axes, styles


def history_plot(
    histories: Mapping[str, tuple[Sequence[int], Sequence[float], Sequence[float]]],
    ylabel: str,
    ax: Axes | None = None,
) -> Axes:
    """Loss or accuracy over the epochs: training as a thin line, validation as a thick one.

    `histories` maps a network to its epochs, training values and validation values.
    """
    ax = new_axes(5.0, 3.2) if ax is None else ax
    for (label, (epochs, train, val)), style in zip(
        histories.items(), styles(len(histories)), strict=True
    ):
        every = max(1, len(epochs) // 12)
        ax.plot(epochs, train, label=f"{label}, training", lw=0.8, **{**style, "marker": ""})
        ax.plot(
            epochs,
            val,
            label=f"{label}, validation",
            lw=1.8,
            markersize=4,
            markevery=every,
            **style,
        )
    ax.set(xlabel="epoch", title=f"{ylabel[:1].upper()}{ylabel[1:]} by epoch")
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return ax
