"""One figure of a report, the sections that figures stand in, and their files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradflow.present import plots

SECTIONS = {
    "study": "What the interventions say",
    "gradients": "Gradients by depth",
    "activations": "Activations by depth",
    "updates": "Updates by depth",
    "training": "Loss and accuracy",
    "classes": "Classes",
    "calibration": "Calibration",
}


@dataclass(frozen=True)
class Chart:
    """One figure: drawn by matplotlib, and by plotly where hovering and choosing help.

    `draw` leaves the title out, which the page says above it. It is None where there is nothing
    to draw: then the caption says so, instead of an empty picture.
    """

    key: str
    section: str
    title: str
    caption: str
    draw: Callable[[], plots.Figure] | None
    interact: Callable[[], str] | None = None

    @property
    def is_drawn(self) -> bool:
        return self.draw is not None

    def draw_with_title(self) -> plots.Figure:
        assert self.draw is not None
        return plots.add_title(self.draw(), self.title)


def save_charts(found: Sequence[Chart], folder: Path) -> list[Path]:
    """Every figure with its title, as SVG and PNG, on white paper and, as KEY-dark, on dark."""
    saved = []
    endings: dict[plots.Theme, str] = {"light": "", "dark": "-dark"}
    for chart in found:
        if chart.draw is None:
            continue
        for theme, figure in plots.in_both_themes(chart.draw_with_title):
            for suffix in (".svg", ".png"):
                saved.append(plots.save(figure, folder / f"{chart.key}{endings[theme]}{suffix}"))
    return saved
