"""What is said of a verdict, a study or a report: plain data, which each medium shows in its way.

`markdown`, `letter` (the terminal) and the template of the page show it. In every text what stands
between backticks is something to type; all else is shown as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradflow.present import plots


@dataclass(frozen=True)
class Box:
    """What a reader must not miss: a head in bold, and what follows from it."""

    head: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Items:
    """A list. What is `folded` waits in a page for a click, and is left out in the terminal."""

    lines: Sequence[str]
    title: str = ""
    numbered: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Reason:
    """An answer, the question that it answers, and what it rests on."""

    head: str
    question: str
    lines: Sequence[str]


@dataclass(frozen=True)
class TextTable:
    """A head and rows of text; the first `n_left` columns are words, the others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    n_left: int = 1


@dataclass(frozen=True)
class Code:
    """What a program reads. With a title it waits in a page for a click."""

    lines: Sequence[str]
    language: str
    title: str = ""


@dataclass(frozen=True)
class Tiles:
    """Small pictures, each a data URI or None, and what is said of each."""

    lines: Sequence[str]
    pictures: Sequence[str | None]


@dataclass(frozen=True)
class Chart:
    """One figure: drawn by matplotlib, and by plotly where hovering and choosing help.

    `plot` leaves the title out, which the page says above it. It is None where there is nothing
    to draw: then the caption says so, instead of an empty picture.
    """

    key: str
    section: str
    title: str
    caption: str
    plot: Callable[[], plots.Drawn] | None = None
    interact: Callable[[], Any] | None = None  # gives a figure of plotly

    @property
    def is_drawn(self) -> bool:
        return self.plot is not None

    def draw(self) -> plots.Figure:
        assert self.plot is not None
        return plots.figure_of(self.plot())

    def draw_with_title(self) -> plots.Figure:
        return plots.add_title(self.draw(), self.title)


Part = str | Box | Items | list[Reason] | TextTable | Code | Tiles | Chart


@dataclass(frozen=True)
class Section:
    """A title, and below it paragraphs, lists, tables and figures."""

    key: str
    title: str
    parts: Sequence[Part]


SECTIONS = {
    "study": "What the interventions say",
    "gradients": "Gradients by depth",
    "activations": "Activations by depth",
    "updates": "Updates by depth",
    "training": "Loss and accuracy",
    "classes": "Classes",
    "calibration": "Calibration",
}
