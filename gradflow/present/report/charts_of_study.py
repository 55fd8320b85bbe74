"""Figures of what the interventions of a study found."""

from collections.abc import Iterator

from gradflow.analysis import thresholds as at
from gradflow.present.report.chart import Chart
from gradflow.present.report.content import Report
from gradflow.present.study_figures import FOREST, study_figures

FOREST_CAPTION = (
    "One row per arm: how much of the gap in training loss goes away when that one thing is "
    f"changed, with its {at.LEVEL} interval over seeds. 0: nothing, 1: all of it. "
    "The sign on the line is a diamond for a main cause, a square for a contributor, a circle for "
    "what is not a cause, and a cross for what the data do not decide."
)
DOSE_CAPTION = (
    f"The outcome at each dose of one thing, with its {at.LEVEL} interval over seeds. A cause "
    "shows as a line that goes one way; a flat line shows that the thing does not matter."
)


def study_charts(report: Report) -> Iterator[Chart]:
    """The forest plot, and the answers to doses."""
    if report.study is None:
        return
    for figure in study_figures(report.study):
        caption = FOREST_CAPTION if figure.name == FOREST else DOSE_CAPTION
        yield Chart(figure.name, "study", figure.title, caption, figure.draw)
