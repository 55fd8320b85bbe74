"""The rate by depth against closed forms and against ordinary least squares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import RESIDUAL, make_network, make_trace

from gradflow.analysis.network import early
from gradflow.analysis.rates import Rate, rate, slopes, trace_rate

STAGES = ["a"] * 3 + ["b"] * 5 + ["c"] + ["d"] * 4


def random_rows(n_layers: int, n_steps: int = 6) -> np.ndarray:
    values: np.ndarray = 10 ** np.random.default_rng(0).normal(0, 2, (n_steps, n_layers))
    return values


def with_dummies(row: np.ndarray, stages: list[str]) -> float:
    """The slope of log10 on the depth from the output, beside one dummy variable per stage."""
    keep = np.isfinite(row) & (row > 0)
    depth = np.arange(len(row), 0, -1.0)
    dummies = [np.array(stages) == stage for stage in dict.fromkeys(stages)]
    design = np.column_stack([depth, *dummies])[keep]
    solution = np.linalg.lstsq(design, np.log10(row[keep]), rcond=None)[0]
    return float(solution[0])


def test_of_one_stage_it_is_polyfit() -> None:
    rows = random_rows(9)
    depth = np.arange(9, 0, -1)
    expected = [np.polyfit(depth, np.log10(row), 1)[0] for row in rows]
    np.testing.assert_allclose(slopes(rows), expected, rtol=1e-9)


def test_of_several_stages_it_is_least_squares_with_dummy_variables() -> None:
    rows = random_rows(len(STAGES))
    expected = [with_dummies(row, STAGES) for row in rows]
    np.testing.assert_allclose(slopes(rows, STAGES), expected, rtol=1e-9)


def test_a_factor_of_a_whole_stage_changes_nothing() -> None:
    rows = random_rows(len(STAGES))
    factors = [{"a": 1e6, "b": 1e-3, "c": 5.0, "d": 1.0}[stage] for stage in STAGES]
    np.testing.assert_allclose(slopes(rows * factors, STAGES), slopes(rows, STAGES), rtol=1e-9)
    assert not np.allclose(slopes(rows * factors), slopes(rows))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_what_has_no_logarithm_is_left_out(bad: float) -> None:
    rows = random_rows(len(STAGES))
    rows[:, [1, 8, 10]] = bad
    expected = [with_dummies(row, STAGES) for row in rows]
    np.testing.assert_allclose(slopes(rows, STAGES), expected, rtol=1e-9)


def test_no_slope_without_two_layers_of_one_stage() -> None:
    assert np.isnan(slopes(np.ones((1, 3)), ["a", "b", "c"])).all()
    assert np.isnan(slopes(np.array([[1.0, np.nan, 0.0]]))).all()
    assert np.isnan(slopes(np.full((2, 3), np.nan))).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    decades=st.floats(-5, 5),
    scale=st.floats(1e-12, 1e12),
    n_layers=st.integers(2, 40),
)
def test_a_geometric_profile_has_its_own_rate(decades: float, scale: float, n_layers: int) -> None:
    depth = np.arange(n_layers, 0, -1)  # of the layers from the input on, counted from the output
    found = rate(scale * 10.0 ** (-decades * depth))
    assert found.decades_per_layer == pytest.approx(-decades, abs=1e-9)
    assert found.decades == pytest.approx(-decades * (n_layers - 1), abs=1e-7)
    assert found.growth == pytest.approx(10 ** (-2 * decades), rel=1e-6)


@pytest.mark.parametrize(
    ("decades", "label"),
    [(-1.5, "vanishing"), (-0.5, "healthy"), (0.5, "healthy"), (1.5, "exploding")],
)
def test_labels_follow_the_change_over_the_whole_depth(decades: float, label: str) -> None:
    for n_layers in (2, 34):
        assert Rate(decades / (n_layers - 1), n_layers).label == label


def test_a_rate_that_could_not_be_formed_is_unknown() -> None:
    assert rate(np.array([1.0, np.nan])).label == "unknown"


def test_one_stage_for_each_layer() -> None:
    with pytest.raises(ValueError, match="one stage for each of 3 layers, but got 2"):
        slopes(np.ones((1, 3)), ["a", "a"])


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
