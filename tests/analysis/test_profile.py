"""Depth profiles and ratios against closed forms."""

import numpy as np
import pytest

from gradflow import Trace
from gradflow.analysis import depth_profile, first_to_last, weight_table

SITES = ("conv1.weight", "bn1.weight", "a.downsample.0.weight", "conv2.weight", "fc.weight")
KINDS = ("conv.weight", "norm.weight", "conv.weight", "conv.weight", "linear.weight")


def trace(rows: list[list[float]], sites=SITES, kinds=KINDS) -> Trace:
    values = np.array(rows)
    steps = np.arange(len(rows))
    return Trace(steps, sites, kinds, np.ones(len(sites), int), {"grad_norm": values})


def test_profile_is_the_geometric_mean_of_the_weights_on_the_path() -> None:
    profile = depth_profile(trace([[1, 9, 9, 10, 2], [100, 9, 9, 1000, 8]]))
    assert profile.sites == ("conv1.weight", "conv2.weight", "fc.weight")
    assert profile.values == pytest.approx([10, 100, 4])


def test_zero_and_nonfinite_steps_are_left_out_of_the_mean() -> None:
    nan, inf = float("nan"), float("inf")
    profile = depth_profile(trace([[0, 1, 1, nan, 0], [5, 1, 1, 3, 0], [inf, 1, 1, 3, 0]]))
    assert profile.values[:2] == pytest.approx([5, 3])
    assert np.isnan(profile.values[2])


def test_ratio_compares_convolutions_and_is_below_one_where_the_gradient_vanishes() -> None:
    assert first_to_last(trace([[1, 9, 9, 100, 7], [8, 9, 9, 2, 7]])) == pytest.approx([0.01, 4])


def test_ratio_of_a_network_without_convolutions() -> None:
    two = trace([[3.0, 6.0]], ("0.weight", "2.weight"), ("linear.weight",) * 2)
    assert first_to_last(two) == pytest.approx([0.5])
    with pytest.raises(ValueError, match="at least two layers with weights, but the trace has 1"):
        first_to_last(trace([[3.0]], ("0.weight",), ("linear.weight",)))


def test_weight_table_keeps_the_steps() -> None:
    table = weight_table(trace([[1, 1, 1, 2, 3], [4, 1, 1, 5, 6]]))
    np.testing.assert_array_equal(table.values, [[1, 2, 3], [4, 5, 6]])
