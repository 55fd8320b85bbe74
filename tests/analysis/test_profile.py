"""Depth profiles and ratios against closed forms."""

import numpy as np
import pytest

from gradflow import Trace
from gradflow.analysis import depth_profile, first_to_last, weight_table
from gradflow.analysis.layers import Layer
from gradflow.analysis.profile import GRADIENT_SIZES, layer_table

SITES = ("conv1.weight", "bn1.weight", "a.downsample.0.weight", "conv2.weight", "fc.weight")
KINDS = ("conv.weight", "norm.weight", "conv.weight", "conv.weight", "linear.weight")


def trace(
    rows: list[list[float]], sites: tuple[str, ...] = SITES, kinds: tuple[str, ...] = KINDS
) -> Trace:
    values = np.array(rows)
    steps = np.arange(len(rows))
    return Trace(steps, sites, kinds, np.ones(len(sites), int), {"grad_norm": values})


def test_profile_is_the_geometric_mean_of_the_weights_on_the_path() -> None:
    profile = depth_profile(trace([[1, 9, 9, 10, 2], [100, 9, 9, 1000, 8]]))
    assert profile.sites == ("conv1.weight", "conv2.weight")
    assert profile.values == pytest.approx([10, 100])


def test_zero_and_nonfinite_steps_are_left_out_of_the_mean() -> None:
    nan, inf = float("nan"), float("inf")
    profile = depth_profile(trace([[0, 1, 1, 0, 0], [5, 1, 1, nan, 3], [inf, 1, 1, 0, 3]]))
    assert profile.values[0] == pytest.approx(5)
    assert np.isnan(profile.values[1])


def test_ratio_compares_convolutions_and_is_below_one_where_the_gradient_vanishes() -> None:
    assert first_to_last(trace([[1, 9, 9, 100, 7], [8, 9, 9, 2, 7]])) == pytest.approx([0.01, 4])


def test_ratio_of_a_network_without_convolutions() -> None:
    two = trace([[3.0, 6.0]], ("0.weight", "2.weight"), ("linear.weight",) * 2)
    assert first_to_last(two) == pytest.approx([0.5])
    with pytest.raises(
        ValueError, match="at least two layers with weights behind each other, but the trace has 1"
    ):
        first_to_last(trace([[3.0]], ("0.weight",), ("linear.weight",)))


def test_weight_table_keeps_the_steps() -> None:
    table = weight_table(trace([[1, 1, 1, 2, 3], [4, 1, 1, 5, 6]]))
    np.testing.assert_array_equal(table.values, [[1, 2], [4, 5]])


def test_the_three_sizes_of_a_gradient() -> None:
    """δ of the norm behind the layer; ŝ = ‖g‖ ‖w‖ / √n and g = ‖g‖ / √n of its weight."""
    sites = ("conv1", "conv1.weight", "bn1", "conv2", "conv2.weight", "fc.weight")
    kinds = ("conv", "conv.weight", "norm", "conv", "conv.weight", "linear.weight")
    nan = float("nan")
    values = {
        "output_grad_norm": np.array([[9.0, nan, 3.0, 5.0, nan, nan]]),
        "grad_norm": np.array([[nan, 2.0, nan, nan, 6.0, 7.0]]),
        "weight_norm": np.array([[nan, 10.0, nan, nan, 20.0, 7.0]]),
    }
    sizes = np.array([1, 4, 1, 1, 9, 1])
    of = Trace(np.arange(1), sites, kinds, sizes, values)
    tables = {size: layer_table(of, size) for size in GRADIENT_SIZES}
    assert all(table.sites == ("conv1", "conv2") for table in tables.values())
    assert tables["output_gradient"].values.tolist() == [[3.0, 5.0]]
    assert tables["scale_invariant"].values.tolist() == [[10.0, 40.0]]
    assert tables["gradient_rms"].values.tolist() == [[1.0, 2.0]]


def test_a_layer_that_the_trace_lacks_is_nan() -> None:
    layers = [Layer(name, f"{name}.weight", None) for name in ("conv2", "gone")]
    table = layer_table(trace([[1, 1, 1, 1, 1]]), "gradient_rms", layers)
    np.testing.assert_array_equal(table.values, [[1, np.nan]])
    with pytest.raises(KeyError):
        layer_table(trace([[1, 1, 1, 1, 1]]), "output_gradient")


def test_a_weight_without_elements_has_no_typical_gradient_and_no_warning() -> None:
    """g = ‖∂L/∂w‖ / √n: 6 / √4, and of none nothing."""
    sizes = np.array([4, 1, 1, 0, 1])
    empty = Trace(np.arange(1), SITES, KINDS, sizes, {"grad_norm": np.full((1, 5), 6.0)})
    layers = [Layer(name, f"{name}.weight", None) for name in ("conv1", "conv2")]
    values = layer_table(empty, "gradient_rms", layers).values
    assert values == pytest.approx(np.array([[3.0, np.nan]]), nan_ok=True)
