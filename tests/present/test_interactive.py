"""The figures of plotly: the values that they draw, and what is hidden together."""

import numpy as np

from gradflow.analysis.overview import Band
from gradflow.present.report import interactive
from gradflow.present.report.depth import Measure, Profile
from gradflow.record.trace import Table

LAYERS = ("conv1", "layer1.0.conv1")
LOGS = np.array([[0.0, -1.0], [-0.5, -2.0], [0.5, 0.0]])  # mean, low, high


def test_a_profile_shows_true_values_between_its_seeds() -> None:
    band = Band("net", "output_gradient", LAYERS, *LOGS)
    figure, _ = interactive.gradient_profiles({"early": [band]}, ["net"])
    low, high, mean = (np.asarray(one.y, float) for one in figure.data)
    np.testing.assert_allclose(mean, [1.0, 0.1])
    np.testing.assert_allclose(low, [10**-0.5, 0.01])
    np.testing.assert_allclose(high, [10**0.5, 1.0])
    assert figure.data[1].fill == "tonexty", "the band lies between the two lines before"
    np.testing.assert_allclose(figure.data[2].customdata, np.stack([low, high], axis=-1))
    assert figure.layout.yaxis.type == "log"


def test_a_measure_from_zero_is_drawn_as_it_is() -> None:
    profile = Profile(LAYERS, *np.array([[0.5, 0.25], [0.4, 0.2], [0.6, 0.3]]))
    figure = interactive.layer_profiles(
        ["net"], {"net": profile}, Measure("s", "share", log=False, by_kind=False)
    )
    assert list(figure.data[2].y) == [0.5, 0.25]
    assert figure.layout.yaxis.range[0] == 0


def test_the_heat_map_shows_log10_layer_by_layer() -> None:
    values = np.array([[1.0, 100.0], [10.0, 0.0], [0.1, np.inf]])  # (steps, layers)
    table = Table(np.array([0, 4, 8]), LAYERS, values)
    figure, _ = interactive.heat_map({("net", "output_gradient"): table})
    (heat,) = figure.data
    np.testing.assert_allclose(np.asarray(heat.z, float), [[0, 1, -1], [2, np.nan, np.nan]])
    assert (list(heat.x), list(heat.y)) == ([0, 4, 8], list(LAYERS))
    assert (heat.zmin, heat.zmax) == (-1, 2), "of what can be drawn"
    assert figure.layout.yaxis.autorange == "reversed", "the input at the top"


def test_the_name_of_a_network_hides_its_band_with_its_line() -> None:
    curves = {name: (np.ones((2, 3)), np.ones((2, 3))) for name in ("a", "b")}
    figure = interactive.curves(curves, [0.1, 0.1, 0.01], "loss")
    for name in ("a, training", "a, validation", "b, training", "b, validation"):
        assert len([one for one in figure.data if one.legendgroup == name]) == 3
