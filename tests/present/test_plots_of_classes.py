"""What the plots of classes and curves draw: data, axes and words, not pixels."""

import numpy as np
import pytest

from gradflow.present import plots

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
