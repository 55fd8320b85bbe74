"""All figures of a report, in the order of the page."""

from gradflow.present.report.chart import Chart
from gradflow.present.report.charts_by_depth import (
    activation_charts,
    gradient_charts,
    update_charts,
)
from gradflow.present.report.charts_of_training import class_charts, training_charts
from gradflow.present.report.content import Report
from gradflow.present.study_figures import study_charts


def charts(report: Report) -> list[Chart]:
    """What the runs hold: a figure without data is left out."""
    return [
        *(() if report.study is None else study_charts(report.study)),
        *gradient_charts(report),
        *activation_charts(report),
        *update_charts(report),
        *training_charts(report),
        *class_charts(report),
    ]
