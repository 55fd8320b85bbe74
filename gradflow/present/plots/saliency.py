"""Saliency maps laid over photographs, and their means by class: arrays in, Axes out."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from gradflow.present.plots.style import TITLE_SIZE, new_figure, wrapped

if TYPE_CHECKING:
    from gradflow.present.saliency.attribution import Attribution
    from gradflow.present.saliency.gallery import Example, Gallery

MAPS_PER_ROW = 5  # maps beside a photograph, which keep 4 cm each on a page
MAP_COLORS = "YlOrRd"  # darker is more, in grey print too
# A few pixels of a raw gradient are many times larger than all others and would leave the rest
# blank. The last colour therefore stands for this percentile and all above it.
MAP_PERCENTILE = 99
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue in grey: ITU-R BT.601
TITLE_WIDTH = 22  # characters of a class name that fit above a map
NOTE_WIDTH = 34  # characters of a note that fit below a map
NO_MAP = "no map: nothing above zero"
MOST_CLASSES = 20  # rows of a gallery that can still be printed; the scores hold all classes
CLASSES_PER_ROW = 5  # mean maps beside each other


def saliency_grid(
    photo: np.ndarray, networks: Mapping[str, "Attribution"], fig: Figure | None = None
) -> list[list[Axes]]:
    """The photograph with each network's maps laid over it, one column per class.

    `photo` is (S, S, 3) uint8. The first column shows it under the network's prediction; five maps
    stand in a row, more go on below. A map is scaled by its own 99th percentile, so that colours
    compare within a map and not between maps; one without a positive value, or with NaN in it,
    leaves the photograph bare and says so. A network's notes, what speaks against its maps, stand
    below each. The predicted class has a frame. Returns the axes by network: the photograph first,
    then one for each map.
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
    label = f"map value / its {MAP_PERCENTILE}th percentile"
    _colour_bar(fig, fig.add_subplot(grid[:, -1]), Normalize(0, 1), label, extend="max")
    fig.suptitle(
        f"Where each network looks, class by class ({sources(networks)}); framed: the predicted "
        "class",
        fontsize=10,
    )
    return axes


def _draw_photo(ax: Axes, photo: np.ndarray, name: str, network: "Attribution") -> None:
    bare(ax)
    ax.imshow(photo)
    best = network.predicted
    title(ax, f"{name}:", f"{network.classes[best]} {_percent(network.probabilities[best])}", True)


def _draw_map(ax: Axes, photo: np.ndarray, network: "Attribution", index: int) -> None:
    bare(ax)
    if overlay(ax, photo, network.maps[index]) and network.notes:
        # Below the map, which it must not hide.
        lines = [line for text in network.notes for line in textwrap.wrap(text, NOTE_WIDTH)]
        ax.set_xlabel("\n".join(lines), fontsize=7)
    at = network.map_classes[index]
    is_predicted = at == network.predicted
    title(ax, network.classes[at], _percent(network.probabilities[at]), is_predicted)
    if is_predicted:
        frame(ax)


def overlay(ax: Axes, photo: np.ndarray, values: np.ndarray) -> bool:
    """Lay a map over its photograph, (S, S, 3) uint8; says where there is none, and returns it."""
    # The photograph pale and in grey, so that colour means the map alone.
    ax.imshow(photo @ LUMA, cmap="gray", vmin=-200, vmax=255)
    scale = _largest(values)
    if scale is None:
        note(ax, NO_MAP)
        return False
    # The map is laid on as thick as it is large: where it is zero the photograph shows.
    norm = Normalize(0, scale, clip=True)
    height, width = photo.shape[:2]
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)  # over the photograph, whatever its size
    ax.imshow(values, MAP_COLORS, norm, alpha=0.85 * norm(values).filled(0), extent=whole)
    return True


def _colour_bar(fig: Figure, ax: Axes, norm: Normalize, label: str, **options: Any) -> None:
    fig.colorbar(ScalarMappable(norm, MAP_COLORS), cax=ax, **options)
    ax.set_ylabel(label, fontsize=8)
    ax.tick_params(labelsize=8)


def frame(ax: Axes) -> None:
    for spine in ax.spines.values():
        spine.set(visible=True, linewidth=3)


def _largest(values: np.ndarray) -> float | None:
    """The value that gets the last colour, None for a map without a positive, finite value."""
    if not np.isfinite(values).all() or values.max() <= 0:
        return None
    return float(np.percentile(values, MAP_PERCENTILE)) or float(values.max())


def note(ax: Axes, text: str) -> None:
    """A line or two at the foot of a map."""
    box = {"facecolor": "white", "linewidth": 0}
    ax.text(
        0.5, 0.05, text, transform=ax.transAxes, ha="center", fontsize=7, color="black", bbox=box
    )


def bare(ax: Axes) -> None:
    """No ticks and no frame."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def title(ax: Axes, first: str, second: str, bold: bool) -> None:
    """A name and a number above a map."""
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


def sources(networks: "Mapping[str, Attribution | Gallery]") -> str:
    """By which method, and at which layer, the maps were found."""
    found = {
        name: network.method + (f" at {network.layer}" if network.layer else "")
        for name, network in networks.items()
    }
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{name}: {source}" for name, source in found.items())


# -- the test set, class by class ------------------------------------------------------------------


def gallery_grid(name: str, gallery: "Gallery", fig: Figure | None = None) -> list[list[Axes]]:
    """A row of pictures for each class, each with the map of the class that was predicted.

    Right ones come first; a wrong one has a frame and says what the network took it for. Maps are
    scaled one by one, as in `saliency_grid`. At most 20 classes are drawn. Returns the axes by
    class, the row's name first.
    """
    rows = gallery.examples[:MOST_CLASSES]
    n_columns = 1 + max(1, *map(len, rows))
    if fig is None:
        fig = new_figure(1.55 * n_columns, 1.8 * len(rows) + 0.9)
    grid = fig.add_gridspec(len(rows), n_columns)
    axes = []
    for i, examples in enumerate(rows):
        head = fig.add_subplot(grid[i, 0])
        _draw_head(head, gallery, i)
        cells = [fig.add_subplot(grid[i, 1 + k]) for k in range(len(examples))]
        for cell, example in zip(cells, examples, strict=True):
            _draw_example(cell, gallery, example)
        axes.append([head, *cells])
    heading = wrapped(fig, _gallery_title(name, gallery, len(rows)))
    fig.suptitle(heading, fontsize=TITLE_SIZE, parse_math=False)
    return axes


def mean_maps_grid(
    networks: Mapping[str, "Gallery"], fig: Figure | None = None
) -> list[list[Axes]]:
    """The mean map of each class, networks below each other, all on one colour scale.

    At most 20 classes are drawn, five in a row. Returns the axes by network.
    """
    first = next(iter(networks.values()))
    n_shown = min(len(first.classes), MOST_CLASSES)
    height = -(-n_shown // CLASSES_PER_ROW)
    n_columns = min(n_shown, CLASSES_PER_ROW)
    n_rows = height * len(networks)
    if fig is None:
        fig = new_figure(1.75 * n_columns + 0.9, 2.0 * n_rows + 0.6)
    grid = fig.add_gridspec(n_rows, n_columns + 1, width_ratios=[1] * n_columns + [0.06])
    drawn = np.concatenate([network.mean_maps[:n_shown].ravel() for network in networks.values()])
    usable = drawn[np.isfinite(drawn)]
    norm = Normalize(0, float(usable.max()) if len(usable) else 1.0)
    axes: list[list[Axes]] = []
    for k, (name, network) in enumerate(networks.items()):
        cells = [
            fig.add_subplot(grid[k * height + i // CLASSES_PER_ROW, i % CLASSES_PER_ROW])
            for i in range(n_shown)
        ]
        for i, cell in enumerate(cells):
            _draw_mean(cell, network, i, norm)
        cells[0].set_ylabel(name, fontsize=9)
        axes.append(cells)
    _colour_bar(fig, fig.add_subplot(grid[:, -1]), norm, "mean of map / its maximum")
    fig.suptitle(wrapped(fig, _mean_title(networks)), fontsize=TITLE_SIZE, parse_math=False)
    return axes


def _draw_head(ax: Axes, gallery: "Gallery", index: int) -> None:
    bare(ax)
    title(ax, gallery.classes[index], "", True)
    text = f"{gallery.n_right[index]} of {gallery.n_pictures[index]}\nnamed right"
    ax.text(0.5, 0.55, text, transform=ax.transAxes, ha="center", va="center", fontsize=8)


def _draw_example(ax: Axes, gallery: "Gallery", example: "Example") -> None:
    bare(ax)
    overlay(ax, example.pixels, example.map)
    said, sure = gallery.classes[example.predicted], _percent(example.probability)
    title(ax, said if example.is_right else f"✗ {said}", sure, not example.is_right)
    if not example.is_right:
        frame(ax)


def _draw_mean(ax: Axes, network: "Gallery", index: int, norm: Normalize) -> None:
    bare(ax)
    values = network.mean_maps[index]
    if np.isfinite(values).all():
        ax.imshow(values, MAP_COLORS, norm)
    else:
        ax.imshow(np.ones((*values.shape, 3)))
        note(ax, NO_MAP)
    title(ax, network.classes[index], f"{network.n_in_mean[index]} pictures", False)


def _gallery_title(name: str, gallery: "Gallery", n_shown: int) -> str:
    n = len(gallery.classes)
    which = f"; the first {n_shown} of {n} classes" if n_shown < n else ""
    text = (
        f"{name}: what it looks at in its test pictures ({sources({name: gallery})}){which}\n"
        "the map of the predicted class; framed and ✗: wrong"
    )
    return "\n".join([text, *gallery.notes])


def _mean_title(networks: Mapping[str, "Gallery"]) -> str:
    noted = [f"{name}: {note}" for name, network in networks.items() for note in network.notes]
    return "\n".join(
        [f"Mean map of each class over its test pictures ({sources(networks)})", *noted]
    )
