"""The rate by depth against closed forms and against ordinary least squares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import RESIDUAL, make_network, make_trace

from gradflow.analysis.network import early
from gradflow.analysis.rates import Drop, Rate, line, trace_rate


def random_rows(n_layers: int, n_steps: int = 6) -> np.ndarray:
    values: np.ndarray = 10 ** np.random.default_rng(0).normal(0, 2, (n_steps, n_layers))
    return values


def test_the_slope_is_that_of_polyfit_and_the_residual_what_it_leaves() -> None:
    rows = random_rows(9)
    depth = np.arange(9, 0, -1)
    fits = [np.polyfit(depth, np.log10(row), 1, full=True) for row in rows]
    np.testing.assert_allclose(
        [line(row)[0] for row in rows], [fit[0][0] for fit in fits], rtol=1e-9
    )
    np.testing.assert_allclose(
        [Rate(row).residual for row in rows], [np.sqrt(fit[1][0] / 9) for fit in fits], rtol=1e-9
    )


def test_what_is_printed_as_times_is_measured() -> None:
    """Four stages of five layers, a hundred-fold fall at each transition: 10^-6, not 1.

    A slope with an intercept for each stage sees none of it: that had been a healthy network.
    """
    found = Rate(np.repeat([1e-6, 1e-4, 1e-2, 1.0], 5))
    assert found.decades == pytest.approx(-6)
    assert found.span == pytest.approx(6)
    assert found.label == "vanishing"
    assert found.drop is not None
    assert found.drop.decades == pytest.approx(-2)
    assert found.drop.index in (4, 9, 14)
    assert found.residual > 0.4, "a line describes it badly"


def test_the_largest_fall_has_its_place() -> None:
    rate = Rate(np.array([0.5, 1.0, 2e-3, 1.0, 1.0]))
    assert rate.drop == Drop(pytest.approx(np.log10(2e-3)), 2)
    assert rate.decades == pytest.approx(np.log10(0.5))
    assert rate.span == pytest.approx(-np.log10(2e-3))
    assert Rate(np.array([3.0, 2.0, 1.0])).drop is None, "it never falls"


def test_zeros_down_to_the_input_are_vanishing_and_have_a_place() -> None:
    """Layer 11 of 20 is dead: no gradient reaches it, nor what is before it."""
    values = np.concatenate([np.zeros(11), np.linspace(0.5, 1, 9)])
    found = Rate(values)
    assert found.label == "vanishing"
    assert found.n_without == 11
    assert found.decades < -40
    assert found.drop is not None
    assert found.drop.index == 10
    everything = Rate(np.zeros(4))
    assert everything.label == "vanishing"
    assert everything.n_without == 4
    assert everything.decades == -np.inf
    first_alone = Rate(np.array([2.0, 0.0, 0.0]))  # all others are branches that add nothing yet
    assert (first_alone.decades, first_alone.label) == (0, "healthy")


def test_zeros_of_a_branch_round_which_the_gradient_goes_are_left_out() -> None:
    found = Rate(np.array([1.0, 0.0, 1.0, 0.0, 1.0]))
    assert found.label == "healthy"
    assert (found.n_without, found.decades, found.decades_per_layer) == (0, 0, 0)


def test_what_is_not_finite_explodes() -> None:
    assert Rate(np.array([np.inf, 1e30, 1.0])).label == "exploding"


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_what_has_no_logarithm_is_left_out_of_the_slope(bad: float) -> None:
    rows = random_rows(9)
    rows[:, [1, 5]] = bad
    keep = [0, 2, 3, 4, 6, 7, 8]
    depth = np.arange(9, 0, -1)[keep]
    expected = [np.polyfit(depth, np.log10(row[keep]), 1)[0] for row in rows]
    np.testing.assert_allclose([line(row)[0] for row in rows], expected, rtol=1e-9)


def test_no_slope_without_two_layers() -> None:
    assert np.isnan(line(np.array([1.0, np.nan, 0.0]))).all()
    assert np.isnan(line(np.full(3, np.nan))).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    decades=st.floats(-5, 5),
    scale=st.floats(1e-12, 1e12),
    n_layers=st.integers(2, 40),
)
def test_a_geometric_profile_has_its_own_rate(decades: float, scale: float, n_layers: int) -> None:
    depth = np.arange(n_layers, 0, -1)  # of the layers from the input on, counted from the output
    found = Rate(scale * 10.0 ** (-decades * depth))
    assert found.decades_per_layer == pytest.approx(-decades, abs=1e-9)
    assert found.decades == pytest.approx(-decades * (n_layers - 1), abs=1e-7)
    assert found.growth == pytest.approx(10 ** (-2 * decades), rel=1e-6)


def test_a_rate_that_could_not_be_formed_is_unknown() -> None:
    assert Rate(np.array([1.0, np.nan])).label == "unknown"


def test_of_a_trace_it_is_that_of_the_geometric_mean_over_the_chosen_steps() -> None:
    steps = np.array([[-2.0], [-4.0], [9.0]])
    tilt = 10 ** (steps * np.linspace(1, 0, 9))
    table = np.column_stack([tilt, np.full(3, 1e30)])  # the classifier has no say
    trace = make_trace({"output_grad_norm": table}, RESIDUAL, n_steps=3)
    first_two = trace_rate(trace, "output_gradient", np.array([True, True, False]))
    assert first_two.decades == pytest.approx(-3)
    assert trace_rate(trace, "output_gradient").decades == pytest.approx(1)


def test_sizes_of_weights_do_not_tilt_the_rate() -> None:
    network = make_network(delta=1, invariant=-2)
    steps = early(network)
    delta, invariant, raw = (
        trace_rate(network.trace, size, steps).decades
        for size in ("output_gradient", "scale_invariant", "gradient_rms")
    )
    assert delta == pytest.approx(1, abs=0.1)
    assert invariant == raw == pytest.approx(-2, abs=0.1)
