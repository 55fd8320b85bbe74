"""The test set class by class: pictures with the map of what was predicted, and mean maps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from gradflow.present.plots.saliency import (
    MAP_COLORS,
    NO_MAP,
    bare,
    frame,
    note,
    overlay,
    sources,
    title,
)
from gradflow.present.plots.style import TITLE_SIZE, new_figure, wrapped

if TYPE_CHECKING:
    from gradflow.present.saliency.gallery import Example, Gallery

MOST_CLASSES = 20  # rows of a gallery that can still be printed; the scores hold all classes
CLASSES_PER_ROW = 5  # mean maps beside each other


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
    bar = fig.add_subplot(grid[:, -1])
    fig.colorbar(ScalarMappable(norm, MAP_COLORS), cax=bar)
    bar.set_ylabel("mean of map / its maximum", fontsize=8)
    bar.tick_params(labelsize=8)
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
    is_right = example.label == example.predicted
    said = gallery.classes[example.predicted]
    title(ax, said if is_right else f"✗ {said}", f"{100 * example.probability:.1f} %", not is_right)
    if not is_right:
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
