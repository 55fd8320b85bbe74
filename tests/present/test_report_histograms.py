"""Histograms in the report: shares that are known beforehand, as numbers, picture and choice."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradflow import Recorder, Trace
from gradflow.analysis.network import TrainedNetwork
from gradflow.present.report import interactive
from gradflow.present.report.charts_by_depth import histogram_charts
from gradflow.present.report.content import Report
from gradflow.present.report.depth import Distribution, distributions
from gradflow.present.report.numbers import numbers
from gradflow.record.histograms import GRADIENTS, WEIGHTS
from gradflow.typed import to_json


def record(folder: Path, powers: tuple[int, ...], *, histograms: bool = True) -> TrainedNetwork:
    """Layers whose weights are 0 on one half and 2^power on the other; nothing learns."""
    layers = [nn.Linear(4, 4, bias=False) for _ in powers]
    with torch.no_grad():
        for layer, power in zip(layers, powers, strict=True):
            layer.weight[:2], layer.weight[2:] = 0.0, 2.0**power
    net = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with Recorder(net, optimizer, folder=folder, histograms=histograms):
        for _ in range(20):
            optimizer.zero_grad()
            net(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    return TrainedNetwork("net", 0, Trace.load(folder), folder=folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Distribution, ...]:
    folders = [tmp_path_factory.mktemp("records") for _ in range(2)]
    group = [record(folder, (1, -3, 0, 2)) for folder in folders]
    return distributions({"net": group})


def test_shares_by_layer_are_those_of_the_weights(found: tuple[Distribution, ...]) -> None:
    assert [(one.kind, one.moment) for one in found] == [
        (kind, moment)
        for kind in (GRADIENTS, WEIGHTS)
        for moment in ("at the end", "halfway", "at the start")
    ]
    weights = found[3]
    assert weights.layers == ("0", "1", "2"), "without the classifier, as in every picture by depth"
    assert weights.exponents.tolist() == [-3, -2, -1, 0, 1]
    expected = np.zeros((3, 5))
    expected[[0, 1, 2], [4, 0, 3]] = 0.5  # the other half is zero
    np.testing.assert_array_equal(weights.shares, expected)
    assert [weights.median(layer) for layer in range(3)] == [1, -3, 0]


def test_the_median_of_nothing_is_none() -> None:
    one = Distribution("net", WEIGHTS, "at the end", ("0",), np.array([0]), np.array([[np.nan]]))
    assert np.isnan(one.median(0))


def test_a_network_of_which_a_seed_was_not_counted_is_left_out(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    group = [record(folders[0], (0, 0, 0)), record(folders[1], (0, 0, 0), histograms=False)]
    assert distributions({"net": group}) == ()
    assert list(histogram_charts(Report(names=("net",), seeds=(0,)))) == []


def test_the_figure_says_the_median_and_draws_gradients_beside_weights(
    found: tuple[Distribution, ...],
) -> None:
    report = Report(names=("net",), seeds=(0, 1), distributions=found)
    (chart,) = histogram_charts(report)
    # Of L = Σ y over 2 examples of ones, by hand: behind the four layers z = 8, 2, 4, 64 and ∂L/∂z
    # = 4, 16, 8, 1; ∂L/∂w of the first layer is 2·4·1, of the third 2·8·2 where z is not 0.
    assert chart.title == (
        "The median element of the gradient at the end of net is 2³ at the first layer and 2⁵ at "
        "the last"
    )
    axes = [ax for ax in chart.draw().axes if ax.get_title()]
    assert [ax.get_title() for ax in axes] == ["net: gradients", "net: weights"]
    np.testing.assert_allclose(np.ma.filled(axes[1].images[0].get_array(), 0), found[3].shares.T)
    content = to_json(numbers(report))["histograms"]
    assert json.loads(json.dumps(content))[3]["shares"] == found[3].shares.tolist()


def test_every_choice_shows_one_heat_map(found: tuple[Distribution, ...]) -> None:
    figure = interactive.histograms(found)
    assert interactive.choices(figure) == {
        "kind": [GRADIENTS, WEIGHTS], "moment": ["at the end", "halfway", "at the start"]
    }  # fmt: skip
    assert [trace.visible for trace in figure.data] == [True] + [False] * 5
    shown = np.nan_to_num(np.asarray(figure.data[3].z, float))
    np.testing.assert_allclose(shown, found[3].shares.T)
