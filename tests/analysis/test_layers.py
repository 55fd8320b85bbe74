"""Which layers stand on the way from input to output, and where their gradients are read."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from traces import RESIDUAL, STACK, make_trace

from gradflow.analysis.layers import (
    Layer,
    align,
    body,
    counterparts,
    depth_note,
    left_out,
    main_path,
    paths,
    stages_of,
)
from gradflow.record import Trace


def trace_of(*sites: tuple[str, str]) -> Trace:
    names, kinds = zip(*sites, strict=True)
    return Trace(np.arange(1), names, kinds, np.ones(len(names), np.int64), {})


def graph_of(**feeds: str) -> Trace:
    """A trace of linear layers, `a="x y"` being fed by x and y; a norm's name begins with n."""
    sites: list[tuple[str, str]] = []
    found: dict[str, tuple[str, ...]] = {}
    for site, before in feeds.items():
        is_norm = site.startswith("n")
        weights = () if is_norm else (f"{site}.weight",)
        found[site] = (*before.split(), *weights)
        kind = "norm" if is_norm else "linear"
        sites += [(site, kind), *((weight, f"{kind}.weight") for weight in weights)]
    return replace(trace_of(*sites), feeds=found)


def names_of(trace: Trace) -> list[str]:
    return [" ".join(layer.name for layer in path) for path in paths(trace)]


@pytest.mark.parametrize(
    ("feeds", "expected"),
    [
        ({"a": "", "b": "a", "c": "b"}, ["a b c"]),
        # A skip connection is no short cut, and a projection stands beside the path.
        ({"a": "", "b": "a", "c": "b", "p": "a", "d": "a p c"}, ["a b c d"]),
        # Two towers, and one that joins another: each has a depth of its own.
        ({"a": "", "x": "", "b": "a", "y": "x"}, ["a b", "x y"]),
        ({"a": "", "b": "a", "x": "", "y": "x", "z": "y", "h": "b z"}, ["x y z h", "a b h"]),
        # Heads on a common trunk: a deep one is a question of its own, a shallow one is not.
        ({"a": "", "b": "a", "v": "b", "x": "b"}, ["a b v"]),
        ({"a": "", "b": "a", "v": "a", "w": "v", "x": "w"}, ["a v w x"]),
        ({"a": "", "u": "a", "b": "u", "c": "b", "v": "a", "w": "v", "x": "w"},
         ["a u b c", "a v w x"]),
        # Branches that meet again, as in Inception, belong to one network.
        ({"a": "", "b": "a", "c": "a", "d": "c", "e": "b d"}, ["a c d e"]),
    ],
)  # fmt: skip
def test_paths_through_the_graph(feeds: dict[str, str], expected: list[str]) -> None:
    assert names_of(graph_of(**feeds)) == expected


def test_names_play_no_part() -> None:
    """The same block as an attribute, in a list, or under the name of a projection."""
    for names in (("res0.a", "res1.a"), ("blocks.0.a", "blocks.1.a"), ("x.downsample.0", "1.2.3")):
        first, second = names
        trace = trace_of((first, "linear"), (f"{first}.weight", "linear.weight"),
                         (second, "linear"), (f"{second}.weight", "linear.weight"))  # fmt: skip
        feeds = {first: (f"{first}.weight",), second: (first, f"{second}.weight")}
        assert names_of(replace(trace, feeds=feeds)) == [" ".join(names)]


def test_the_gradient_is_read_behind_the_norm_that_alone_follows() -> None:
    path = main_path(graph_of(a="", n1="a", b="n1", n2="n1 b", c="n2"))
    assert [layer.output for layer in path] == ["n1", "b", "c"]


def test_what_is_left_out_is_named_with_its_reason() -> None:
    trace = graph_of(a="", b="a", p="a", c="b p")
    trace = replace(trace, sites=(*trace.sites, "unused.weight"),
                    kinds=(*trace.kinds, "linear.weight"),
                    sizes=np.ones(len(trace.sites) + 1, np.int64))  # fmt: skip
    assert left_out(trace) == {
        "on a shorter branch": ("p",), "without a gradient": ("unused",)
    }  # fmt: skip
    assert depth_note(trace) == (
        "Left out of the depth, on a shorter branch: p. "
        "Left out of the depth, without a gradient: unused."
    )
    assert depth_note(graph_of(a="", b="a")) == ""
    assert "order of execution" in depth_note(make_trace({}, RESIDUAL))


def test_what_no_gradient_was_taken_of_is_on_no_path() -> None:
    """A longer tower behind a `detach`, and a head that no loss uses."""
    trace = graph_of(x="", y="x", z="y", a="", b="a", c="b", h="c", u="c", v="u")
    gone = {f"{name}{end}" for name in "xyzuv" for end in ("", ".weight")}
    norms = np.array([[np.nan if site in gone else 1.0 for site in trace.sites]])
    trace = replace(trace, values={"grad_norm": norms, "output_grad_norm": norms})
    assert names_of(trace) == ["a b c h"]
    assert left_out(trace) == {"without a gradient": ("x", "y", "z", "u", "v")}
    is_output = np.array([["." not in site for site in trace.sites]])
    frozen = np.where(is_output, norms, np.nan)  # a gradient passes through them all the same
    frozen = replace(trace, values={"grad_norm": np.full_like(norms, np.nan),
                                    "output_grad_norm": frozen})  # fmt: skip
    assert names_of(frozen) == ["a b c h"]
    diverged = replace(trace, values={"grad_norm": np.full_like(norms, np.nan),
                                      "grad_nonfinite": np.ones_like(norms)})  # fmt: skip
    assert names_of(diverged) == ["a b c u v", "x y z"]
    nothing = replace(trace, values={"grad_norm": np.full_like(norms, np.nan)})
    assert names_of(nothing) == ["a b c u v", "x y z"]


def test_recurrent_layers_stack_and_a_loop_is_as_deep_as_its_steps() -> None:
    weights = [f"rnn.weight_{way}_l{i}" for i in (0, 1) for way in ("ih", "hh")]
    cell = ("cell.weight_ih", "cell.weight_hh")
    sites = [("rnn", "other"), *((weight, "other.w") for weight in weights),
             ("cell", "other"), *((weight, "other.w") for weight in cell),
             ("cell#1", "other"), ("cell#2", "other")]  # fmt: skip
    feeds = {"rnn": tuple(weights), "cell": ("rnn", *cell), "cell#1": ("cell", *cell),
             "cell#2": ("cell#1", *cell)}  # fmt: skip
    trace = replace(trace_of(*sites), feeds=feeds)
    path = main_path(trace)
    assert [layer.name for layer in path] == [
        "rnn.weight_ih_l0", "rnn.weight_ih_l1", "cell.weight_ih", "cell.weight_hh",
        "cell.weight_hh#1", "cell.weight_hh#2",
    ]  # fmt: skip
    assert [layer.output for layer in path] == [None, "rnn", None, "cell", "cell#1", "cell#2"]
    assert [layer.weight for layer in path][-2:] == ["", ""], "its gradient is that of all calls"
    assert list(left_out(trace)) == ["acts from one time step to the next"]


def test_the_path_of_a_residual_network() -> None:
    path = main_path(make_trace({}, RESIDUAL))
    assert [layer.name for layer in path] == list(RESIDUAL)
    assert path[1] == Layer("layer1.0.conv1", "layer1.0.conv1.weight", "layer1.0.bn1")
    assert path[-1] == Layer("fc", "fc.weight", "fc")
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
    with pytest.raises(
        ValueError, match="at least two layers with weights behind each other, but the trace has 1"
    ):
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
