"""The figures of plotly: the values that they draw, and what is hidden together."""

import numpy as np

from gradflow.analysis.overview import Band
from gradflow.present.report import interactive

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
