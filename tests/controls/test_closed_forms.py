"""Closed forms against published and derived tables, limits and simulation by hand."""

from collections.abc import Callable
from functools import partial
from math import log

import numpy as np
import pytest
from plain_34_theory import growth_with_norm, growth_without_norm
from scipy.special import polygamma
from torch import nn

from gradflow.controls import (
    expected_growth_bn_linear,
    expected_growth_bn_relu,
    expected_growth_linear,
    expected_growth_relu,
    networks,
    sigmoid_rate,
)
from gradflow.controls.networks import KnownNetwork, record
from gradflow.controls.truths import IMAGES, WITH_NORM, WITHOUT_NORM

YANG = {4: 3.084, 8: 1.788, 16: 1.590, 32: 1.522, 50: 1.501, 64: 1.493, 128: 1.480, 512: 1.470}


@pytest.mark.parametrize(("batch_size", "growth"), YANG.items())
def test_growth_of_batchnorm_and_relu_is_that_of_the_table(batch_size: int, growth: float) -> None:
    assert expected_growth_bn_relu(batch_size) == pytest.approx(growth, abs=5.1e-4)


def test_growth_of_batchnorm_and_relu_by_simulation() -> None:
    """tr E[J D P D J] / d with z drawn, not integrated, for B = 8."""
    b, n = 8, 40_000
    projection = np.eye(b) - 1 / b
    h = np.random.default_rng(0).standard_normal((n, b)) @ projection
    s2 = (h**2).mean(axis=1, keepdims=True)
    z = h / np.sqrt(s2)
    mask = (z > 0).astype(float)
    x = z * mask
    variance = ((x @ projection) * x).sum() / n / (b - 1)  # of x in each of the d directions
    dpd = mask[:, :, None] * projection * mask[:, None, :]
    jacobian = projection - z[:, :, None] * z[:, None, :] / b
    kept = np.einsum("nij,njk,nki->n", jacobian, dpd, jacobian)
    assert (kept / s2[:, 0]).mean() / variance / (b - 1) == pytest.approx(
        expected_growth_bn_relu(b), rel=0.02
    )


def test_growth_of_batchnorm_without_an_activation() -> None:
    assert expected_growth_bn_linear(8) == pytest.approx(1.2)
    assert expected_growth_bn_linear(50) == pytest.approx(1.0213, abs=1e-4)


@pytest.mark.parametrize("growth", [expected_growth_bn_relu, expected_growth_bn_linear])
def test_batches_of_three_have_no_growth(growth: Callable[[int], float]) -> None:
    with pytest.raises(ValueError, match="Expected a batch of at least 4, but got 3"):
        growth(3)


def test_rates_of_the_sigmoid() -> None:
    assert sigmoid_rate(1.0) ** 2 == pytest.approx(0.0557, abs=5e-5)
    assert sigmoid_rate(1 / 3) ** 2 == pytest.approx(0.0200, abs=5e-5)
    assert sigmoid_rate(1e-9) ** 2 / 1e-9 == pytest.approx(1 / 16), "σ′(0) = ¼"


def test_growth_of_narrow_layers_lies_below_that_of_wide_ones() -> None:
    for n in (64, 1024):
        assert log(expected_growth_linear(n)) == pytest.approx(-1 / n, rel=0.02)
        assert log(expected_growth_relu(n, 1.0)) == pytest.approx(-5 / (2 * n), rel=0.1)
    assert expected_growth_relu(64, 0.5) == pytest.approx(expected_growth_relu(64, 1.0) / 4)


@pytest.mark.parametrize(
    ("build", "numerator"),
    [
        (partial(networks.gaussian_linear, 33, 128), 2),
        (partial(networks.relu_mlp, 33, 128, 1.0), 5),
    ],
)
def test_the_total_scatters_as_hanin_and_nica_say(
    build: Callable[[int], nn.Module], numerator: int
) -> None:
    """Variance of the total ln λ over L steps: L ψ′(n/2) ≈ 2L/n, and 5L/n of ReLU."""
    n, n_steps, n_seeds = 128, 31, 20
    totals = []
    for seed in range(n_seeds):
        trace = record(KnownNetwork("", build, (1, n), "healthy", networks.PRECISE), seed)
        norms = trace.select("output_grad_norm", ["linear"]).values[0]
        totals.append(2 * np.log(norms[0] / norms[n_steps]))
    error = (2 / (n_seeds - 1)) ** 0.5  # of a variance, relative
    assert np.var(totals, ddof=1) == pytest.approx(numerator * n_steps / n, rel=3 * error)
    assert polygamma(1, n / 2) == pytest.approx(2 / n, rel=0.01)


# -- Plain-34 ----------------------------------------------------------------------------------


def growth_with_transitions(factor: float, at_transitions: float) -> float:
    """λ over 6, 8, 12 and 6 convolutions, where the first of a stage has a factor more."""
    steps = np.full(31, np.log(factor))
    steps[[5, 13, 25]] += np.log(at_transitions)
    logs = np.concatenate([[0], np.cumsum(steps[::-1])])
    depth = np.arange(32) - 15.5
    return float(np.exp(depth @ logs / (depth @ depth)))


def test_the_controls_hold_plain_34_to_these_numbers() -> None:
    size = IMAGES[2]
    assert growth_with_norm(size, IMAGES[0]) == pytest.approx(WITH_NORM, rel=1e-12)
    for init, growth in WITHOUT_NORM.items():
        assert growth_without_norm(init, size) == pytest.approx(growth, rel=1e-12)


def test_without_padding_plain_34_is_a_relu_network() -> None:
    """At 2048 pixels only 16 of 64 × 64 and fewer in deeper stages are at the border.

    He's variance 2 / 9 C_out keeps the gradient, and halves it where the channels double; the
    variance 1 / 27 C_in of PyTorch takes a sixth everywhere.
    """
    expected = growth_with_transitions(1, 1 / 2)
    assert growth_without_norm("kaiming", 2048) == pytest.approx(expected, abs=0.005)
    assert growth_without_norm("torch-default", 2048) == pytest.approx(1 / 6, rel=0.005)


def test_padding_by_hand_on_images_of_one_pixel() -> None:
    """At 4 pixels every stage has one: of nine neighbours one is left, and λ is a ninth."""
    expected = growth_with_transitions(1 / 9, 1 / 2)
    assert growth_without_norm("kaiming", 4) == pytest.approx(expected)
    assert growth_without_norm("torch-default", 4) == pytest.approx(1 / 6 / 9)


def test_with_norm_one_pixel_is_a_fully_connected_network() -> None:
    """To first order in 1/B; at the start other images are independent, not at ρ = −1/(B − 1)."""
    for batch_size in (64, 512):
        growth = growth_with_norm(4, batch_size)
        assert growth == pytest.approx(expected_growth_bn_relu(batch_size), rel=0.002)
