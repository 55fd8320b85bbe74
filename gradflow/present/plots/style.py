"""What all plots share: colours, figures and their files. No pyplot, so that no figure stays."""

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Figure
from matplotlib.text import Text

from gradflow.files import whole

# One style for each network. The colours are those of Okabe and Ito, which the colour-blind can
# tell apart (https://jfly.uni-koeln.de/color/), and read on white as on black, so that a network
# has the same colour everywhere; dashes and markers carry the same in grey print.
STYLES = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    {"color": "#767676", "linestyle": (0, (6, 1)), "marker": "v"},
)
# One for each architecture, whatever else a figure shows; other names take what is left.
OF_ARCHITECTURE = {"plain_34": 0, "resnet_34": 1, "plain_18": 2, "resnet_18": 3}
GUIDE = "#767676"  # lines that are not data: zero, a threshold, the learning rate
DPI = 120  # a heat map is then a PNG of about 50 kB, a saliency grid of two networks 700 kB
TRACKER_DPI = 100  # 700 pixels wide: trackers show a picture at 400 to 900

# The files that can be written, each with what marks it as gradflow's; without a date.
_MARK = "gradflow"
FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"metadata": {"Software": _MARK}},
    ".svg": {"metadata": {"Creator": _MARK, "Date": None}},
    ".pdf": {"metadata": {"Creator": _MARK, "CreationDate": None}},
    ".jpg": {"pil_kwargs": {"comment": _MARK}},
    ".jpeg": {"pil_kwargs": {"comment": _MARK}},
}

TITLE_SIZE = 10  # points
TITLE_CHARACTERS = 12  # that fit into an inch at that size
LEGEND_CHARACTERS = 24  # of one line beside a figure

Drawn = Figure | Axes | Sequence["Drawn"]  # what a function that draws returns
Theme = Literal["light", "dark"]
GROUND: dict[Theme, tuple[str, str]] = {  # the colours of paper and ink
    "light": ("#ffffff", "#000000"),
    "dark": ("#15181b", "#e6e6e6"),
}
ENDINGS: dict[Theme, str] = {"light": "", "dark": "-dark"}  # of the names of files

GRAD_NORM = "gradient norm ‖∂L/∂w‖₂ (loss / weight)"  # the label of an axis of `grad_norm`


def theme(name: Theme) -> AbstractContextManager[None]:
    """Figures that are made and saved inside it have light or dark paper.

    >>> with theme("dark"):
    ...     new_figure(4.0, 3.0).get_facecolor() == matplotlib.colors.to_rgba("#15181b")
    True
    """
    paper, ink = GROUND[name]
    return matplotlib.rc_context(
        {
            "figure.facecolor": paper,
            "axes.facecolor": paper,
            "savefig.facecolor": "auto",
            "text.color": ink,
            "axes.titlecolor": "auto",
            "axes.labelcolor": ink,
            "axes.edgecolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
        }
    )


def add_title(fig: Figure, text: str) -> Figure:
    """The finding over the whole figure, wrapped to its width; the figure grows by its lines.

    >>> fig = add_title(new_figure(3.0, 2.0), "The recall of bakso differs most, by +0.12")
    >>> fig.get_suptitle()
    'The recall of bakso differs most, by\\n+0.12'
    """
    title = wrapped(fig, text)
    height = 1.3 * TITLE_SIZE / 72 * (title.count("\n") + 1)
    fig.set_figheight(fig.get_figheight() + height)
    fig.suptitle(title, fontsize=TITLE_SIZE, parse_math=False)
    return fig


def wrapped(fig: Figure, text: str) -> str:
    """Each line of `text` in as many as the width of the figure needs."""
    width = int(TITLE_CHARACTERS * fig.get_figwidth())
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


def in_both_themes(draw: Callable[[], Drawn]) -> Iterator[tuple[Theme, Figure]]:
    """What `draw` makes on white paper and on dark, its parts in the same places in every file.

    Save a figure before the next one is asked for: its ticks take their colour when they are drawn.
    """
    light = None
    for name in GROUND:
        with theme(name):
            figure = _lay_out(figure_of(draw()), light)
            light = figure
            yield name, figure


def _lay_out(fig: Figure, like: Figure | None) -> Figure:
    """Place axes and titles for good: as in `like`, or else as matplotlib does at each saving.

    Placing costs more than drawing. And where axes keep their shape, as in a confusion matrix, a
    second placing, for the second file, pushes labels out of the picture.
    """
    if like is None:
        as_written(fig).draw_without_rendering()
    else:
        for ax, placed in zip(fig.axes, like.axes, strict=True):
            ax.set_position(placed.get_position(original=True))
        for text, placed_text in zip(fig.texts, like.texts, strict=True):
            text.set_position(placed_text.get_position())
    fig.set_layout_engine(None)
    return fig


def picture_path(path: Path) -> Path:
    """`path`, ending in .png where it has no ending. ValueError for one that cannot be written."""
    if path.name and not path.suffix:  # the name of . is empty
        return path.with_name(f"{path.name}.png")
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"Expected `--output` to end in one of {', '.join(FORMATS)}, the pictures that can be "
            f"written, but got {path}. Give it such an ending, or none for .png."
        )
    return path


def refuse_to_replace(path: Path) -> None:
    """Refuse to write over what is no figure of gradflow's, such as a photograph: ValueError."""
    if path.exists() and not (path.is_file() and _MARK.encode() in path.read_bytes()):
        raise ValueError(
            f"Expected a new --output, or that of an earlier call, but {path} is there and was not "
            "written by one. Give another one."
        )


def save_in_both_themes(draw: Callable[[], Drawn], folder: Path, name: str) -> list[Path]:
    """What `draw` makes as SVG and PNG, on white paper and, as NAME-dark, on dark."""
    return [
        save(figure, folder / f"{name}{ENDINGS[theme]}{suffix}")
        for theme, figure in in_both_themes(draw)
        for suffix in (".svg", ".png")
    ]


def save(drawn: Drawn, path: Path) -> Path:
    """Write it to `path` in the format of its suffix (`FORMATS`), the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    marked = FORMATS[path.suffix.lower()]
    options = matplotlib.rc_context({"svg.hashsalt": "gradflow", "svg.fonttype": "none"})
    with options, whole(path) as unfinished:
        as_written(figure_of(drawn)).savefig(unfinished, dpi=DPI, **marked)
    return path


def to_svg(fig: Figure) -> bytes:
    """`fig` as an SVG picture, the same bytes every time."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gradflow", "svg.fonttype": "none"}):
        as_written(fig).savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def to_pixels(drawn: Drawn) -> np.ndarray:
    """It as (height, width, 3) uint8, for a tracker."""
    fig = figure_of(drawn)
    fig.set_dpi(TRACKER_DPI)
    canvas = FigureCanvasAgg(as_written(fig))
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def as_written(fig: Figure) -> Figure:
    """`fig` with every $ in a name as it is: to Matplotlib a pair of them is a formula."""
    for text in fig.findobj(Text):
        assert isinstance(text, Text)
        if "$" in text.get_text() and not text.get_text().startswith(r"$\mathdefault"):  # of a tick
            text.set_parse_math(False)
    return fig


def ink_on(color: Any) -> str:
    """Black or white, whichever stands out more from `color`: at least 4.5 to 1 by WCAG 2.1.

    >>> ink_on("#6baed6"), ink_on("#08306b")
    ('black', 'white')
    """
    parts = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"


def positive_range(arrays: Iterable[np.ndarray]) -> tuple[float, float] | None:
    """The lowest and the highest value above zero; None where there is none."""
    values = np.concatenate([np.empty(0), *(one.ravel() for one in arrays)])
    usable = values[np.isfinite(values) & (values > 0)]
    return (float(usable.min()), float(usable.max())) if len(usable) else None


def figure_of(drawn: Drawn) -> Figure:
    """The whole figure that what a plot returned stands in."""
    while isinstance(drawn, Sequence):
        drawn = drawn[0]
    fig = drawn if isinstance(drawn, Figure) else drawn.figure
    return fig if isinstance(fig, Figure) else fig.figure


def new_figure(width: float, height: float) -> Figure:
    """Inches. Outside pyplot's list, so that it is gone with its last reference."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def new_axes(width: float, height: float) -> Axes:
    return new_figure(width, height).add_subplot()


def stacked(n: int, width: float, height: float) -> list[Axes]:
    """Axes below each other, of this size each."""
    return list(new_figure(width, height * n).subplots(n, 1, squeeze=False)[:, 0])


def over_a_strip(width: float, height: float) -> tuple[Axes, Axes]:
    """Axes, and a low one below them with the same horizontal axis."""
    heights = {"height_ratios": [4, 1]}
    above, below = new_figure(width, height).subplots(2, 1, sharex=True, gridspec_kw=heights)
    return above, below


def style_numbers(names: Iterable[str]) -> dict[str, int]:
    """Which of `STYLES` each network has: its architecture's, in every figure and for every seed.

    Networks of another name take those that are left, in their order.

    >>> style_numbers(["resnet_34-s2", "plain_34", "mine"])
    {'resnet_34-s2': 1, 'plain_34': 0, 'mine': 2}
    """
    names = list(names)
    known = {name: OF_ARCHITECTURE.get(re.sub(r"-s\d+$", "", name)) for name in names}
    left = itertools.cycle(
        [i for i in range(len(STYLES)) if i not in known.values()] or range(len(STYLES))
    )
    return {name: next(left) if (i := known[name]) is None else i for name in names}


def styles(names: Iterable[str]) -> list[dict[str, Any]]:
    """How to draw each network; see `style_numbers`."""
    return [dict(STYLES[i]) for i in style_numbers(names).values()]


def legend_beside(ax: Axes) -> None:
    """The legend at the right of the axes, where it covers no line; none for nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    lines = [textwrap.fill(label, LEGEND_CHARACTERS) for label in labels]
    ax.legend(
        handles, lines, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0,
        frameon=False, fontsize=8,
    )  # fmt: skip
