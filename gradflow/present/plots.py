"""Plots: arrays in, Axes out. Drawing only, no pyplot, so that no global figure is left behind."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

# One style for each network. The colours are those of Okabe and Ito, which the colour-blind can
# tell apart (https://jfly.uni-koeln.de/color/); dashes and markers carry the same in grey print.
STYLES = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    {"color": "#000000", "linestyle": (0, (6, 1)), "marker": "v"},
)
COLORMAP = "viridis"
NO_VALUE = "#bdbdbd"  # grey, which stands nowhere in the colour map

MAX_COLUMNS = 2000  # more than the pixels across a figure: further steps would not be seen
MAX_LAYER_TICKS = 8
MAPS_PER_ROW = 5  # maps beside a photograph, which keep 4 cm each on a page
MAP_COLORS = "YlOrRd"  # darker is more, in grey print too
# A few pixels of a raw gradient are many times larger than all others and would leave the rest
# blank. The last colour therefore stands for this percentile and all above it.
MAP_PERCENTILE = 99
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue in grey: ITU-R BT.601
TITLE_WIDTH = 22  # characters of a class name that fit above a map
DPI = 120  # a heat map is then a PNG of about 50 kB, a saliency grid of two networks 700 kB

GRAD_NORM = "gradient norm ‖∂L/∂w‖₂ (loss / weight)"  # the label of an axis of `grad_norm`


class ClassMaps(Protocol):
    """What `saliency_grid` draws of one network: see `gradflow.present.saliency.Attribution`."""

    @property
    def method(self) -> str: ...
    @property
    def layer(self) -> str | None: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def probabilities(self) -> np.ndarray: ...  # (classes,)
    @property
    def maps(self) -> np.ndarray: ...  # (n_maps, S, S)
    @property
    def map_classes(self) -> tuple[int, ...]: ...  # (n_maps,): the class of each map


def depth_profile_plot(
    profiles: Mapping[str, tuple[Sequence[str], np.ndarray]], ylabel: str, ax: Axes | None = None
) -> Axes:
    """One line per network over its layers, input left, on a logarithmic axis.

    `profiles` maps a network to its layer names and one value for each. Networks of different
    layers are drawn by their own count of layers, and the axis then shows that count. Zero and
    NaN have no place on the axis: the line has a gap there.
    """
    ax = _new_axes(7.0, 3.8) if ax is None else ax
    for (label, (_, values)), style in zip(profiles.items(), _styles(len(profiles)), strict=True):
        ax.plot(np.arange(len(values)), values, label=label, markersize=3.5, lw=1.4, **style)
    ax.set_yscale("log", nonpositive="mask")
    low, high = ax.get_ylim()
    if high < 20 * low:
        # Whole decades: else hardly a tick has a label, and small differences would look large.
        ax.set_ylim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))
    _layers_on_x(ax, [tuple(layers) for layers, _ in profiles.values()])
    ax.set_ylabel(ylabel, parse_math=False)
    ax.set_title("Depth profile, from input to output")
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False)
    return ax


def profile_bands_plot(
    bands: Mapping[str, tuple[Sequence[str], np.ndarray, np.ndarray, np.ndarray]],
    ylabel: str,
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Depth profiles over seeds: the mean as a line, the range of the seeds as a band.

    `bands` maps a network to its layer names and log10 of the mean, lowest and highest value of
    each layer; NaN leaves a gap. The axis shows the values, not their logarithms.
    """
    ax = _new_axes(7.0, 3.8) if ax is None else ax
    for (label, (_, mean, low, high)), style in zip(
        bands.items(), _styles(len(bands)), strict=True
    ):
        x = np.arange(len(mean))
        ax.plot(x, 10.0**mean, label=label, markersize=3.5, lw=1.4, **style)
        ax.fill_between(x, 10.0**low, 10.0**high, color=style["color"], alpha=0.2, lw=0)
    ax.set_yscale("log", nonpositive="mask")
    _layers_on_x(ax, [tuple(layers) for layers, *_ in bands.values()])
    ax.set_ylabel(ylabel, parse_math=False)
    ax.set_title(title)
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False)
    return ax


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
    ax = _new_axes(7.0, 4.2) if ax is None else ax
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
        grey = Patch(facecolor=NO_VALUE, edgecolor="black", lw=0.5, label="no value (0, NaN, inf)")
        # Below the picture, where it hides no layer.
        ax.legend(
            handles=[grey],
            loc="upper right",
            bbox_to_anchor=(1.02, -0.06),
            fontsize=8,
            frameon=False,
        )
    return ax


def history_plot(
    histories: Mapping[str, tuple[Sequence[int], Sequence[float], Sequence[float]]],
    ylabel: str,
    ax: Axes | None = None,
) -> Axes:
    """Loss or accuracy over the epochs: training as a thin line, validation as a thick one.

    `histories` maps a network to its epochs, training values and validation values.
    """
    ax = _new_axes(5.0, 3.2) if ax is None else ax
    for (label, (epochs, train, val)), style in zip(
        histories.items(), _styles(len(histories)), strict=True
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


def saliency_grid(
    photo: np.ndarray, networks: Mapping[str, ClassMaps], fig: Figure | None = None
) -> list[list[Axes]]:
    """The photograph with each network's maps laid over it, one column per class.

    `photo` is (S, S, 3) uint8. The first column shows it under the network's prediction; five maps
    stand in a row, more go on below. A map is scaled by its own 99th percentile, so that colours
    compare within a map and not between maps; one without a positive value, or with NaN in it,
    leaves the photograph bare and says so. The predicted class
    has a frame. Returns the axes by network: the photograph first, then one for each map.
    """
    most = max(len(network.map_classes) for network in networks.values())
    n_columns = 1 + min(most, MAPS_PER_ROW)
    n_rows = [-(-len(network.map_classes) // MAPS_PER_ROW) for network in networks.values()]
    if fig is None:
        fig = new_figure(1.75 * n_columns + 0.7, 2.1 * sum(n_rows) + 0.5)
    # A column of its own keeps the colour bar clear of the maps.
    grid = fig.add_gridspec(sum(n_rows), n_columns + 1, width_ratios=[1] * n_columns + [0.06])
    axes: list[list[Axes]] = []
    top = 0
    for (name, network), height in zip(networks.items(), n_rows, strict=True):
        cells = [
            fig.add_subplot(grid[top + i // MAPS_PER_ROW, 1 + i % MAPS_PER_ROW])
            for i in range(len(network.map_classes))
        ]
        axes.append([fig.add_subplot(grid[top, 0]), *cells])
        _draw_photo(axes[-1][0], photo, name, network)
        for index, cell in enumerate(cells):
            _draw_map(cell, photo, network, index)
        top += height
    bar = fig.add_subplot(grid[:, -1])
    fig.colorbar(ScalarMappable(Normalize(0, 1), MAP_COLORS), cax=bar, extend="max")
    bar.set_ylabel(f"map value / its {MAP_PERCENTILE}th percentile", fontsize=8)
    bar.tick_params(labelsize=8)
    fig.suptitle(_saliency_title(networks), fontsize=10)
    return axes


def save(fig: Figure, path: Path, dpi: int = DPI) -> Path:
    """Write `fig` to `path` in the format of its suffix (.png, .svg), the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dated = "Date" if path.suffix.lower() == ".svg" else "Software"
    with matplotlib.rc_context({"svg.hashsalt": "gradflow", "svg.fonttype": "none"}):
        fig.savefig(path, dpi=dpi, metadata={dated: None})
    return path


def to_pixels(fig: Figure, dpi: int = DPI) -> np.ndarray:
    """`fig` as (height, width, 3) uint8."""
    fig.set_dpi(dpi)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def figure_of(ax: Axes) -> Figure:
    """The whole figure that `ax` stands in."""
    fig = ax.figure
    return fig if isinstance(fig, Figure) else fig.figure


def new_figure(width: float, height: float) -> Figure:
    """Inches. Outside pyplot's list, so that it is gone with its last reference."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _new_axes(width: float, height: float) -> Axes:
    return new_figure(width, height).add_subplot()


def _styles(n: int) -> list[dict[str, Any]]:
    return [dict(STYLES[i % len(STYLES)]) for i in range(n)]


def _layers_on_x(ax: Axes, layers: list[tuple[str, ...]]) -> None:
    if len(set(layers)) == 1:
        ticks = _layer_ticks(layers[0])
        names = [_short(layers[0][tick]) for tick in ticks]
        ax.set_xticks(ticks, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        ax.set_xlabel("layer (input at the left)")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
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


def _draw_photo(ax: Axes, photo: np.ndarray, name: str, network: ClassMaps) -> None:
    _bare(ax)
    ax.imshow(photo)
    best = int(np.argmax(network.probabilities))
    _title(ax, f"{name}:", f"{network.classes[best]} {_percent(network.probabilities[best])}", True)


def _draw_map(ax: Axes, photo: np.ndarray, network: ClassMaps, index: int) -> None:
    _bare(ax)
    # The photograph pale and in grey, so that colour means the map alone.
    ax.imshow(photo @ LUMA, cmap="gray", vmin=-200, vmax=255)
    values = network.maps[index]
    scale = _largest(values)
    if scale is None:
        _note(ax, "no map: nothing above zero")
    else:
        # The map is laid on as thick as it is large: where it is zero the photograph shows.
        norm = Normalize(0, scale, clip=True)
        height, width = photo.shape[:2]
        frame = (-0.5, width - 0.5, height - 0.5, -0.5)  # over the photograph, whatever its size
        ax.imshow(values, MAP_COLORS, norm, alpha=0.85 * norm(values).filled(0), extent=frame)
    at = network.map_classes[index]
    predicted = at == int(np.argmax(network.probabilities))
    _title(ax, network.classes[at], _percent(network.probabilities[at]), predicted)
    if predicted:
        for spine in ax.spines.values():
            spine.set(visible=True, color="black", linewidth=3)


def _largest(values: np.ndarray) -> float | None:
    """The value that gets the last colour, None for a map without a positive, finite value."""
    if not np.isfinite(values).all() or values.max() <= 0:
        return None
    return float(np.percentile(values, MAP_PERCENTILE)) or float(values.max())


def _note(ax: Axes, text: str) -> None:
    box = {"facecolor": "white", "linewidth": 0}
    ax.text(0.5, 0.05, text, transform=ax.transAxes, ha="center", fontsize=7, bbox=box)


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _title(ax: Axes, first: str, second: str, bold: bool) -> None:
    # A name may be broken after an underscore.
    lines = [
        line.replace("_ ", "_")
        for text in (first, second)
        for line in textwrap.wrap(text.replace("_", "_ "), TITLE_WIDTH)
    ]
    weight = "bold" if bold else "normal"
    # A class may be called `$x_1$`: names are shown as they are.
    ax.set_title("\n".join(lines), fontsize=8, fontweight=weight, parse_math=False)


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def _saliency_title(networks: Mapping[str, ClassMaps]) -> str:
    sources = {
        name: network.method + (f" at {network.layer}" if network.layer else "")
        for name, network in networks.items()
    }
    if len(set(sources.values())) == 1:
        how = next(iter(sources.values()))
    else:
        how = "; ".join(f"{name}: {source}" for name, source in sources.items())
    return f"Where each network looks, class by class ({how}); framed: the predicted class"
