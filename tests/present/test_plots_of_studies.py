"""What the plots of a study draw: shares with their intervals, and answers to doses."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from gradflow.present import plots

NAMES = ("bias-1", "constant-lr", "early-up")


def test_a_forest_has_a_row_per_arm_from_the_top_with_its_interval_and_what_it_is() -> None:
    shares = np.array([0.9, 0.3, np.nan])
    intervals = np.array([[0.8, 1.0], [-4.0, 4.0], [np.nan, np.nan]])
    ax = plots.forest_plot(
        NAMES, shares, intervals, "share", statuses=("main cause", "x", "y"),
        zones={"main cause": 0.5}, limits=(-1.0, 1.5),
    )  # fmt: skip
    heights = dict(zip((one.get_text() for one in ax.get_yticklabels()), ax.get_yticks(),
                       strict=True))  # fmt: skip
    assert heights == {"bias-1": 2, "constant-lr": 1, "early-up": 0}
    across = [line for line in ax.lines if len(line.get_xdata()) == 2]
    spans = {
        line.get_ydata()[0]: line.get_xdata()
        for line in across
        if line.get_ydata()[0] == line.get_ydata()[1]
    }
    np.testing.assert_allclose(spans[2], [0.8, 1.0])
    np.testing.assert_allclose(spans[1], [-1.0, 1.5])  # cut at the axis
    assert 0 not in spans, "an arm without an interval has none"
    points = {(line.get_ydata()[0], line.get_marker()): line.get_xdata()[0] for line in ax.lines
              if len(line.get_xdata()) == 1}  # fmt: skip
    assert points[2, "D"] == 0.9
    assert {marker for height, marker in points if height == 1} >= {"<", ">"}, "it goes on"
    said = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert (said["x"], said["y"]) == (1, 0)
    assert ax.get_xlim() == (-1.0, 1.5)
    ax = plots.forest_plot(NAMES, shares, intervals, "recall")
    assert ax.get_xlim()[0] < -4, "without limits all of it is seen"
    assert 0 in {line.get_xdata()[0] for line in ax.lines}, "a line at zero"


def test_an_answer_is_drawn_by_dose_with_its_interval_over_seeds() -> None:
    doses, means = np.array([1000.0, 0.001, 1.0]), np.array([3.0, 1.0, 2.0])
    intervals = np.stack([means - 0.5, means + 0.25], axis=1)
    empty = (np.empty(0), np.empty(0), np.empty((0, 2)))
    ax = plots.dose_response_plot(
        {"none": empty, "net": (doses, means, intervals)}, "factor", "loss (nats)", log=True
    )
    (line, *_) = [
        one for one in ax.lines if len(one.get_xdata()) == 3 and one.get_linestyle() != "None"
    ]
    np.testing.assert_array_equal(line.get_xdata(), [0.001, 1.0, 1000.0])
    np.testing.assert_array_equal(line.get_ydata(), [1.0, 2.0, 3.0])
    (bars,) = (one for one in ax.collections if isinstance(one, LineCollection))
    ends = [[segment[0][1], segment[1][1]] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.5, 1.25], [1.5, 2.25], [2.5, 3.25]])
    assert line.get_color() == plots.STYLES[1]["color"], "the style of its place"
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "factor", "loss (nats)")


@pytest.mark.parametrize("log", [True, False])
def test_a_dose_may_stand_on_a_linear_axis(log: bool) -> None:
    one = np.array([0.0 if not log else 0.5, 1.0])
    ax = plots.dose_response_plot(
        {"net": (one, one, np.stack([one, one], 1))}, "β", "loss", log=log
    )
    assert ax.get_xscale() == ("log" if log else "linear")
