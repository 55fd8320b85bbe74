"""Which layers stand on the way from input to output, and where their gradients are read."""

from collections.abc import Sequence

import numpy as np
import pytest
from traces import RESIDUAL, STACK, make_trace

from gradflow.analysis.layers import (
    Layer,
    align,
    body,
    counterparts,
    main_path,
    stages_of,
)
from gradflow.record import Trace


def trace_of(*sites: tuple[str, str]) -> Trace:
    names, kinds = zip(*sites, strict=True)
    return Trace(np.arange(1), names, kinds, np.ones(len(names), np.int64), {})


def test_the_path_of_a_residual_network() -> None:
    path = main_path(make_trace({}, RESIDUAL))
    assert [layer.name for layer in path] == list(RESIDUAL)
    assert path[1] == Layer("layer1.0.conv1.weight", "layer1.0.bn1", "layer1")
    assert path[-1] == Layer("fc.weight", "fc", "fc")
    assert body(path) == path[:-1]


def test_without_a_norm_the_output_is_that_of_the_layer_itself() -> None:
    assert [layer.output for layer in main_path(make_trace({}, STACK))] == list(STACK)
    path = main_path(make_trace({}, RESIDUAL, norm=False))
    assert [layer.output for layer in path] == list(RESIDUAL)


def test_projections_biases_and_repeated_calls_are_not_on_the_path() -> None:
    path = main_path(
        trace_of(
            ("conv1", "conv"), ("conv1.weight", "conv.weight"), ("conv1.bias", "conv.bias"),
            ("bn1", "norm"), ("bn1.weight", "norm.weight"),
            ("conv1#1", "conv"),
            ("a.downsample.0", "conv"), ("a.downsample.0.weight", "conv.weight"),
            ("a.downsample.1", "norm"),
            ("downsample.0.weight", "conv.weight"),
            ("a.conv2", "conv"), ("a.conv2.weight", "conv.weight"),
            ("a.relu", "activation"), ("a.bn2", "norm"),
        )
    )  # fmt: skip
    assert [(layer.weight, layer.output) for layer in path] == [
        ("conv1.weight", "bn1"),
        ("a.conv2.weight", "a.conv2"),  # an activation stands between it and the norm
    ]


def test_the_norm_that_begins_the_next_block_is_not_that_of_the_layer_before() -> None:
    """Between them lies the addition of the skip connection: it sees the gradient of its branch."""
    path = main_path(
        trace_of(
            ("block1.norm1", "norm"), ("block1.fc1", "linear"),
            ("block1.fc1.weight", "linear.weight"), ("block1.norm2", "norm"),
            ("block1.fc2", "linear"), ("block1.fc2.weight", "linear.weight"),
            ("block2.norm1", "norm"), ("block2.fc1", "linear"),
            ("block2.fc1.weight", "linear.weight"),
        )
    )  # fmt: skip
    assert [layer.output for layer in path] == ["block1.norm2", "block1.fc2", "block2.fc1"]


def test_a_weight_whose_output_was_not_recorded_has_none() -> None:
    path = main_path(trace_of(("a.weight", "linear.weight"), ("b.weight", "linear.weight")))
    assert [layer.output for layer in path] == [None, None]


def test_two_layers_are_both_body() -> None:
    path = main_path(make_trace({}, ("0", "2")))
    assert body(path) == path


def test_depth_needs_two_layers() -> None:
    with pytest.raises(ValueError, match="at least two layers with weights, but the trace has 1"):
        main_path(make_trace({}, ("fc",)))


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (["conv1", "layer1.0.conv1", "layer1.1.conv1", "fc"], ["conv1", "layer1", "layer1", "fc"]),
        (["features.0", "features.3", "classifier.1"], ["features", "features", "classifier"]),
        (["fc1", "fc2", "fc3"], ["", "", ""]),
        (["0", "2", "4"], ["", "", ""]),
        (["0.conv1", "0.conv2", "1.conv1"], ["", "", ""]),
    ],
)
def test_stages(names: Sequence[str], stages: list[str]) -> None:
    assert stages_of(names) == stages


def test_layers_of_the_same_name_align() -> None:
    deep, shallow = (main_path(make_trace({}, names)) for names in (RESIDUAL, RESIDUAL[:4]))
    assert align(deep, shallow) == deep[:4]
    with pytest.raises(ValueError, match=r"\(conv1, layer1.0.conv1, …, fc\) and \(0, 2\) share 0"):
        align(deep, main_path(make_trace({}, ("0", "2"))))


def test_a_counterpart_is_read_where_its_own_network_has_it() -> None:
    normed, plain = (main_path(make_trace({}, RESIDUAL, norm=norm)) for norm in (True, False))
    assert counterparts(normed[1:3], plain) == plain[1:3]
    assert plain[1].output != normed[1].output
