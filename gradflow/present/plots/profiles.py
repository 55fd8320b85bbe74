"""Depth profiles and the heat map of layers by steps: arrays in, Axes out."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gradflow.analysis.numerals import power_of_two
from gradflow.present.plots.style import GUIDE, figure_of, legend_beside, new_axes, styles

COLORMAP = "viridis"
NO_VALUE = "#bdbdbd"  # grey, which stands nowhere in the colour map

MAX_COLUMNS = 2000  # more than the pixels across a figure: further steps would not be seen
MAX_LAYER_TICKS = 8


def profile_bands_plot(
    bands: Mapping[str, tuple[Sequence[str], np.ndarray, np.ndarray, np.ndarray]],
    ylabel: str,
    title: str,
    ax: Axes | None = None,
    *,
    log: bool = True,
    by_kind: bool = False,
    mark: tuple[str, str] | None = None,
) -> Axes:
    """Depth profiles over seeds: the mean as a line, the range of the seeds as a band.

    `bands` maps a network to its layer names and the mean, lowest and highest value of each layer;
    NaN leaves a gap, and so does zero on the logarithmic axis. Without `log` the axis begins at
    zero: for shares. With `by_kind`
    layers of two kinds are two lines (`kinds_of_layers`), as activations need it. `mark` is a layer
    to point at, and what the legend says of it. In networks of different layers it is marked in
    each, where it has its own number.
    """
    ax = new_axes(8.0, 3.8) if ax is None else ax
    for (label, (_, *values)), style in zip(bands.items(), styles(bands), strict=True):
        mean, low, high = (np.where(one > 0, one, np.nan) if log else one for one in values)
        names = bands[label][0]
        kinds = kinds_of_layers(names) if by_kind else {"": np.arange(len(names))}
        for i, (kind, x) in enumerate(kinds.items()):
            look = style if i == 0 else {**style, "markerfacecolor": "none"}
            said = f"{label}, {kind}" if len(kinds) > 1 else label
            ax.plot(x, mean[x], label=said, markersize=3.5, lw=1.4, **look)
            ax.fill_between(x, low[x], high[x], color=style["color"], alpha=0.2, lw=0)
    if log:
        ax.set_yscale("log", nonpositive="mask")
        bottom, top = ax.get_ylim()
        if top < 20 * bottom:
            # Whole decades: else hardly a tick has a label, and small differences look large.
            ax.set_ylim(10 ** np.floor(np.log10(bottom)), 10 ** np.ceil(np.log10(top)))
    else:
        ax.set_ylim(0, max(ax.get_ylim()[1], 0.01))
    layers = {name: tuple(layers) for name, (layers, *_) in bands.items()}
    colors = {None: GUIDE} | {
        name: look["color"] for name, look in zip(bands, styles(bands), strict=True)
    }
    for says, network, at in marks(layers, *mark) if mark is not None else ():
        ax.axvline(at, color=colors[network], label=says, ls=":", lw=1.2)
    _layers_on_x(ax, list(layers.values()))
    ax.set_ylabel(ylabel, parse_math=False)
    ax.set_title(title)
    ax.grid(axis="y", alpha=0.3)
    legend_beside(ax)
    return ax


def kinds_of_layers(layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Which layers one line may join, as positions: `relu1` inside a block and `relu2` behind it
    are two kinds, and a line over both would jump at every layer.

    By the last part of the name, where that is a word and each comes at least three times.

    >>> kinds_of_layers(["0.relu1", "0.relu2", "1.relu1", "1.relu2", "2.relu1", "2.relu2"])
    {'relu1': array([0, 2, 4]), 'relu2': array([1, 3, 5])}
    """
    last = np.array([layer.rpartition(".")[2] for layer in layers])
    names, counts = np.unique(last, return_counts=True)
    often = set(names[counts >= 3])
    if len(often) < 2 or counts[counts < 3].sum() > 1 or any(name.isdigit() for name in names):
        return {"": np.arange(len(layers))}
    # A single layer of another name, as the stem's, stands with the kind that comes first.
    first = next(name for name in last if name in often)
    kinds = np.array([name if name in often else first for name in last])
    return {str(name): np.flatnonzero(kinds == name) for name in dict.fromkeys(kinds)}


def layer_step_heatmap(
    values: np.ndarray,
    steps: np.ndarray,
    layers: Sequence[str],
    label: str,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Layers by steps in colour, input at the top, `values` of shape (steps, layers).

    Colours are logarithmic, over `limits` or else over the values; give several networks the same
    limits to compare them. Zero, NaN and inf are grey. Of more than 2000 steps only every k-th is
    drawn, and the title says so. Raises ValueError where the shapes do not fit.
    """
    if values.shape != (len(steps), len(layers)):
        raise ValueError(
            f"Expected `values` to have shape (steps, layers) = {(len(steps), len(layers))}, "
            f"but got {values.shape}."
        )
    ax = new_axes(7.0, 4.2) if ax is None else ax
    stride = -(-len(steps) // MAX_COLUMNS) or 1
    steps, values = steps[::stride], values[::stride]
    shown = np.ma.masked_where(~(np.isfinite(values) & (values > 0)), values).T
    cmap = matplotlib.colormaps[COLORMAP].with_extremes(bad=NO_VALUE)
    # `pcolorfast` draws an image (small in SVG too), and keeps uneven steps where they belong.
    image = ax.pcolorfast(
        _edges(steps),
        np.arange(len(layers) + 1) - 0.5,
        shown,
        cmap=cmap,
        norm=LogNorm(*(limits or _range(shown))),
    )
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ticks = _layer_ticks(layers)
    ax.set_yticks(ticks, [_short(layers[tick]) for tick in ticks], fontsize=8)
    ax.set(xlabel="optimizer step", ylabel="layer (input at the top)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title("Every layer at every recorded step" + (f", 1 of {stride}" * (stride > 1)))
    figure_of(ax).colorbar(image, ax=ax, label=label)
    if np.ma.is_masked(shown):
        grey = Patch(facecolor=NO_VALUE, edgecolor=GUIDE, lw=0.5, label="no value (0, NaN, inf)")
        # Below the picture, where it hides no layer.
        ax.legend(
            handles=[grey],
            loc="upper right",
            bbox_to_anchor=(1.02, -0.06),
            fontsize=8,
            frameon=False,
        )
    return ax


def histogram_map(
    shares: np.ndarray, exponents: np.ndarray, layers: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Layers by powers of two in colour, `shares` of their elements of shape (layers, exponents).

    `exponents` are whole numbers without a gap. What has no element is grey.
    """
    ax = new_axes(6.0, 3.8) if ax is None else ax
    shown = np.ma.masked_where(~(shares > 0), shares).T
    cmap = matplotlib.colormaps[COLORMAP].with_extremes(bad=NO_VALUE)
    edges = np.arange(len(layers) + 1) - 0.5, np.append(exponents, exponents[-1] + 1)
    image = ax.pcolorfast(*edges, shown, cmap=cmap, vmin=0)
    _layers_on_x(ax, [tuple(layers)])
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(lambda at, _: power_of_two(at))
    ax.set_ylabel("size of an element")
    figure_of(ax).colorbar(image, ax=ax, label="share of elements")
    return ax


def marks(
    layers: Mapping[str, Sequence[str]], layer: str, says: str
) -> Sequence[tuple[str, str | None, int]]:
    """(label, network, position) of each line that points at a layer: one for all networks, or
    for each, where the same layer has other numbers."""
    at = {network: names.index(layer) for network, names in layers.items() if layer in names}
    if len({tuple(names) for names in layers.values()}) > 1:
        return [(f"{says} of {network}", network, place) for network, place in at.items()]
    return [(says, None, place) for place in at.values()][:1]


def _layers_on_x(ax: Axes, layers: list[tuple[str, ...]]) -> None:
    if len(set(layers)) == 1:
        ticks = _layer_ticks(layers[0])
        names = [_short(layers[0][tick]) for tick in ticks]
        ax.set_xticks(ticks, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        ax.set_xlabel("layer (input at the left)")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.xaxis.set_major_formatter(lambda at, _: f"{at + 1:g}")  # the first layer is number 1
        ax.set_xlabel("layer, counted from the input")


def _layer_ticks(layers: Sequence[str]) -> list[int]:
    """Where a stage begins, which is where the first part of the name changes, and the last.

    >>> _layer_ticks(["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "fc"])
    [0, 1, 3, 4]
    """
    stages = [layer.split(".")[0] for layer in layers]
    begin = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    ticks = sorted({*begin, len(layers) - 1}) if layers else []
    if len(ticks) <= MAX_LAYER_TICKS:
        return ticks
    picked = np.linspace(0, len(ticks) - 1, MAX_LAYER_TICKS).round().astype(int)
    return [ticks[i] for i in picked]


def _short(layer: str) -> str:
    return layer.removesuffix(".weight")


def _edges(steps: np.ndarray) -> np.ndarray:
    """Where one column ends and the next begins: halfway between two steps."""
    if len(steps) < 2:
        first = float(steps[0]) if len(steps) else 0.0
        return np.array([first - 0.5, first + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    first, last = 2 * steps[0] - middles[0], 2 * steps[-1] - middles[-1]
    return np.concatenate([[first], middles, [last]])


def _range(shown: np.ma.MaskedArray) -> tuple[float, float]:
    """Limits for the colours, at least a factor of 2 apart."""
    if shown.count() == 0:
        return 0.1, 1.0
    lowest, highest = float(shown.min()), float(shown.max())
    return lowest, max(highest, 2 * lowest)
