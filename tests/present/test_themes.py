"""Every figure can be read on white and on dark paper."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text

from gradflow.present import plots

LAYERS = ("conv1", "layer1.0.conv1", "fc")
VALUES = np.array([1.0, 2.0, 3.0])
NETWORKS = ("plain_34", "resnet_34")
PHOTO = np.full((8, 8, 3), 128, np.uint8)


EXAMPLES = [
    [SimpleNamespace(pixels=PHOTO, map=np.eye(4), is_right=right, predicted=0, probability=0.7)]
    for right in (True, False)
]
MAPS: Any = SimpleNamespace(  # of one network: all that the three grids want
    method="gradcam",
    layer="layer3",
    notes=("fails: does not depend on the weights",),
    classes=("bakso", "rendang"),
    probabilities=np.array([0.7, 0.3]),
    predicted=0,
    maps=np.stack([np.eye(4), np.zeros((4, 4))]),
    map_classes=(0, 1),
    examples=EXAMPLES,
    mean_maps=np.stack([np.eye(4), np.full((4, 4), np.nan)]),
    n_in_mean=(3, 0),
    n_right=(3, 0),
    n_pictures=(4, 1),
)
BOTH = dict.fromkeys(NETWORKS, MAPS)
# Shares of 0, 0.1, …, 1 of a row: numbers over cells of every colour.
COUNTS = 10 * np.eye(11, dtype=int) + [[k * (c == (r + 1) % 11) - k * (c == r) for c in range(11)]
                                       for r, k in enumerate(range(11))]  # fmt: skip
FIGURES: dict[str, Callable[[], Any]] = {
    "profile_bands_plot": lambda: plots.profile_bands_plot(
        {name: (LAYERS, VALUES, VALUES - 1, VALUES + 1) for name in "abcde"}, "g", "title",
        mark=("fc", "differs most"),
    ),
    "layer_step_heatmap": lambda: plots.layer_step_heatmap(
        np.array([[1.0, 0.0, 10.0]]), np.arange(1), LAYERS, "g"
    ),
    "confusion_plot": lambda: plots.confusion_plot(COUNTS, list(map(str, range(11))), "title"),
    "reliability_plot": lambda: plots.reliability_plot(
        {name: (VALUES / 3, VALUES / 3, VALUES) for name in NETWORKS}, "title"
    ),
    "curves_plot": lambda: plots.curves_plot(
        {name: (np.ones((2, 2)), np.ones((2, 2))) for name in NETWORKS}, [1e-3, 1e-4], "loss", "t"
    ),
    "saliency_grid": lambda: plots.saliency_grid(PHOTO, BOTH),
    "gallery_grid": lambda: plots.gallery_grid("plain_34", MAPS),
    "mean_maps_grid": lambda: plots.mean_maps_grid(BOTH),
    "forest_plot": lambda: plots.forest_plot(
        LAYERS, VALUES / 3, np.stack([VALUES - 3, VALUES], 1), "share",
        statuses=("main cause", "contributor", "undetermined"), zones={"main cause": 0.5},
        limits=(-1.0, 1.5),
    ),
    "dose_response_plot": lambda: plots.dose_response_plot(
        {name: (VALUES, VALUES, np.stack([VALUES, VALUES], 1)) for name in NETWORKS}, "β", "loss"
    ),
}  # fmt: skip


def test_every_figure_is_looked_at() -> None:
    drawing = {name for name in dir(plots) if name.endswith(("_plot", "_grid", "_heatmap"))}
    assert set(FIGURES) == drawing


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_written_and_drawn_stands_out_from_its_paper(name: str, theme: plots.Theme) -> None:
    with plots.theme(theme):
        figure = plots.figure_of(FIGURES[name]())
        figure.draw_without_rendering()
    assert figure.get_facecolor() == to_rgba(plots.GROUND[theme][0])
    pale = [
        f"{artist}: {contrast:.1f}"
        for artist, color, paper, least in shown(figure)
        if (contrast := ratio(color, paper)) < least
    ]
    assert not pale


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_one_layout_in_all_its_files(name: str, tmp_path: Path) -> None:
    """matplotlib lays a figure out anew for each file, and where axes keep their shape (a confusion
    matrix) the second layout pushed the label of an axis out of the picture."""
    places = []
    for _, figure in plots.in_both_themes(
        lambda: plots.add_title(plots.figure_of(FIGURES[name]()), "finding")
    ):
        for file in ("a.svg", "b.png"):
            places.append([place(one) for one in (*figure.axes, *figure.texts)])
            plots.save(figure, tmp_path / file)
        box = figure.get_tightbbox()  # in inches
        assert min(box.x0, box.y0) >= -0.01
        assert box.x1 <= figure.get_figwidth() + 0.01
        assert box.y1 <= figure.get_figheight() + 0.01
    assert all(one == places[0] for one in places)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_network_stands_out_from_both_papers(theme: plots.Theme) -> None:
    for color in (plots.GUIDE, *(style["color"] for style in plots.STYLES)):
        assert ratio(to_rgba(str(color)), to_rgba(plots.GROUND[theme][0])) >= 3


def test_outside_a_theme_the_settings_are_the_users() -> None:
    before = plots.new_figure(1, 1).get_facecolor()
    with plots.theme("dark"):
        assert plots.new_figure(1, 1).get_facecolor() != before
    assert plots.new_figure(1, 1).get_facecolor() == before


def place(artist: Any) -> tuple[float, ...]:
    """Where it stands, in parts of the figure; of an axes that keeps its shape, where it may."""
    if isinstance(artist, Axes):
        return artist.get_position(original=True).bounds
    return tuple(artist.get_position())


def shown(figure: plots.Figure) -> Iterator[tuple[Any, Any, Any, float]]:
    """(artist, its colour, what it stands on, the least contrast by WCAG 2.1)."""
    paper = figure.get_facecolor()
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text():
            yield text, to_rgba(text.get_color()), behind(text, paper), 4.5
    for line in figure.findobj(Line2D):
        if line.get_visible() and line.get_alpha() is None:  # a grid is meant to be faint
            yield line, to_rgba(line.get_color()), paper, 3
    for spine in figure.findobj(Spine):
        if spine.get_visible():
            yield spine, spine.get_edgecolor(), paper, 3


def behind(text: Text, paper: Any) -> Any:
    """What a text stands on: its box, the cell of a picture that it numbers, or the paper."""
    box, axes = text.get_bbox_patch(), text.axes
    if box:
        return box.get_facecolor()
    if axes is None or not axes.images or text.get_transform() != axes.transData:
        return paper
    (image,) = axes.images
    column, row = text.get_position()
    return image.to_rgba(image.get_array()[row, column])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_numbers_of_a_confusion_matrix_are_looked_at_in_cells_of_every_colour(
    theme: plots.Theme,
) -> None:
    with plots.theme(theme):
        figure = plots.figure_of(FIGURES["confusion_plot"]())
    paper = figure.get_facecolor()
    on = {color: set() for color in ("black", "white")}
    for text in figure.axes[0].texts:
        on[text.get_color()].add(luminance(behind(text, paper)))
    assert len(on["black"]) >= 3
    assert len(on["white"]) >= 3
    assert min(on["black"]) > max(on["white"])


def ratio(color: Any, paper: Any) -> float:
    """Of the luminances, https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio: 1 to 21."""
    first, second = sorted((luminance(color), luminance(paper)), reverse=True)
    return (first + 0.05) / (second + 0.05)


def luminance(color: Any) -> float:
    parts = np.asarray(color[:3])
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
