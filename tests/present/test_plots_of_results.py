"""What the plots of classes and curves draw: data, axes and words, not pixels."""

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

from gradflow.data import Batches, ImageStore
from gradflow.present import plots
from gradflow.present.figures import short_last_batch, without_short
from gradflow.record.trace import Table
from gradflow.training.config import TrainConfig

NAMES = ("$x_1$", "rendang", "bakso")


def test_confusion_writes_every_count_and_colours_by_row() -> None:
    matrix = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 8]])
    ax = plots.confusion_plot(matrix, NAMES, "title")
    assert [text.get_text() for text in ax.texts] == list("310000208")
    shares = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(shares, [[0.75, 0.25, 0], [0, 0, 0], [0.2, 0, 0.8]])
    assert [label.get_text() for label in ax.get_yticklabels()] == list(NAMES)
    assert ax.get_ylabel() == "true class"
    with pytest.raises(ValueError, match=r"shape \(3, 3\), one row and column"):
        plots.confusion_plot(matrix[:2], NAMES, "title")


def test_confusion_of_many_classes_is_colours_alone_and_no_larger() -> None:
    """A count in each of 10,000 cells would be an SVG of 3.5 MB, four times in a report."""
    names = [f"class {i}" for i in range(100)]
    ax = plots.confusion_plot(np.eye(100, dtype=int), names, "title")
    assert not ax.texts
    assert ax.get_figure().get_figwidth() < 12
    np.testing.assert_array_equal(ax.images[0].get_array(), np.eye(100))
    places = ax.get_yticks()
    assert len(places) <= 30
    assert [one.get_text() for one in ax.get_yticklabels()] == [names[int(at)] for at in places]
    assert len(plots.to_svg(plots.figure_of(ax))) < 300_000


def test_reliability_leaves_empty_bins_out_and_shows_the_counts_below() -> None:
    confidence, accuracy = np.array([np.nan, 0.6, 0.9]), np.array([np.nan, 0.5, 0.8])
    bins = {"net": (confidence, accuracy, np.array([0, 5, 50]))}
    ax, below = plots.reliability_plot(bins, "title")
    _, line = ax.lines
    np.testing.assert_allclose(line.get_xydata(), [[0.6, 0.5], [0.9, 0.8]])
    assert [bar.get_height() for bar in below.patches] == [0, 5, 50]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in below.patches]
    np.testing.assert_allclose(middles, [1 / 6, 0.5, 5 / 6])
    assert ax.get_xlim() == ax.get_ylim() == (0, 1)


def test_curves_show_the_mean_and_range_of_seeds_over_the_learning_rate() -> None:
    train = np.array([[3.0, 2.0, np.nan], [1.0, 1.0, 1.0]])
    top, bottom = plots.curves_plot({"net": (train, train + 1)}, [0.1, 0.1, 0.01], "loss", "title")
    thin, thick = top.lines
    np.testing.assert_allclose(thin.get_ydata(), [2.0, 1.5, 1.0])
    np.testing.assert_allclose(thick.get_ydata(), [3.0, 2.5, 2.0])
    assert thin.get_linewidth() < thick.get_linewidth()
    band = top.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == 1.0
    assert band[:, 1].max() == 3.0
    assert bottom.get_yscale() == "log"
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), [0.1, 0.1, 0.01])


# -- studies ---------------------------------------------------------------------------------------


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


# -- short batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(199, 64), (64, 64), (65, 64), (160, 64), (159, 64)])
def test_the_last_batch_is_short_where_the_batches_say_so(n, size):
    store = ImageStore(
        torch.zeros(n, 3, 1, 1, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64), ("a", "b")
    )
    sizes = Batches(store, np.arange(n), size, shuffle=True).batch_sizes()
    expected = (len(sizes), sizes[-1]) if sizes[-1] < size / 2 else None
    assert short_last_batch(TrainConfig(batch_size=size), n) == expected


def test_their_steps_leave_a_table_and_no_others():
    table = Table(np.arange(0, 12, 2), ("a",), np.arange(6.0)[:, None])
    assert without_short(table, (3, 7)).steps.tolist() == [0, 4, 6, 10]  # 2 and 8 are third
    assert without_short(table, None) is table
