"""The layers on the way from input to output, and where the gradients of each are read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradflow.record.trace import Trace

# Where a trace has no graph: layers whose weights lie on the path from input to output, and the
# name of what stands beside it.
PATH_KINDS = ("conv.weight", "linear.weight")
PROJECTION = ".downsample."

# Of recurrent layers of torch: from one time step to the next, and so not from layer to layer.
_OVER_TIME = re.compile(r"(^|\.)weight_hh_l\d")
UNREACHED = "without a gradient"  # why a layer is left out that no loss depends on
# Of these, NaN at every step says that nothing arrived: detached, unused, or frozen.
_TAKEN = ("grad_norm", "grad_nonfinite", "output_grad_norm", "output_grad_nonfinite")
_WEIGHT = re.compile(r"\.(parametrizations\.weight\.\w+|weight(_v|_orig)?)$")


@dataclass(frozen=True)
class Layer:
    """A layer on a path, by the qualified name of its module, `#1` being its second call."""

    name: str
    weight: str  # the parameter; "" where a layer before it on the path has the same one
    output: str | None  # where ∂L/∂z is read: the norm right behind it, else the layer itself


def main_path(trace: Trace) -> tuple[Layer, ...]:
    """The longest path from input to output. Raises ValueError where there is none."""
    found = paths(trace)
    n = len(found[0]) if found else sum(map(len, left_out(trace).values()))
    if not found or n < 2:
        raise ValueError(
            f"Expected at least two layers with weights behind each other, but the trace has {n}. "
            "A question about depth needs a network with depth."
        )
    return found[0]


def paths(trace: Trace) -> tuple[tuple[Layer, ...], ...]:
    """Each way through the network that has a depth of its own, the longest one first.

    A path is the longest chain of layers through a layer with which a way begins or ends; a skip
    connection is no short cut along it. The first is that of the layer that ran first. The others
    count where more than half of their layers are on no path yet: a second tower, or a deep head.
    Branches that leave a path and come back to it are beside it. A trace without the graph of the
    network has one path: its layers in order of execution. What no gradient was ever taken of, as
    behind a `detach`, is on none; nor is a head that no loss uses.
    """
    if trace.feeds is None:
        path = _in_order(trace)
        return (path,) if path else ()
    graph = _Graph(trace, trace.feeds)
    found: list[tuple[Layer, ...]] = []
    taken: set[str] = set()
    first, *others = [*map(graph.path_through, graph.ends()), ()]
    for path in (first, *sorted(others, key=len, reverse=True)):
        new = {layer.name for layer in path} - taken
        if 2 * len(new) > len(path) > 1:
            found.append(path)
            taken |= new
    return tuple(sorted(found, key=len, reverse=True))


def body(path: Sequence[Layer]) -> tuple[Layer, ...]:
    """The path without its last layer, the classifier.

    Its few weights, and its place behind the pooling, do not compare with those of the others.
    """
    return tuple(path[:-1]) if len(path) > 2 else tuple(path)


def depth_note(trace: Trace) -> str:
    """Which order the layers stand in and which are left out, in a sentence; "" if none is."""
    said = []
    if trace.feeds is None:
        said.append("The layers stand in order of execution: the records hold no graph")
    path = next(iter(paths(trace)), ())
    n_again = sum("#" in layer.name for layer in path)
    if 2 * n_again > len(path):
        said.append(f"{n_again} of {len(path)} layers are later calls of others, as in a loop over "
                    "time")  # fmt: skip
    for why, names in left_out(trace).items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        said.append(f"Left out of the depth, {why}: {shown}")
    return ". ".join(said) + "." * bool(said)


def left_out(trace: Trace) -> dict[str, tuple[str, ...]]:
    """Why -> the layers that are on no path."""
    on_a_path = {layer.weight for path in paths(trace) for layer in path}
    feeds = trace.feeds or {}
    used = {weight for behind in feeds.values() for weight in behind if weight not in feeds}
    kinds = dict(zip(trace.sites, trace.kinds, strict=True))
    used |= {site for site, kind in kinds.items() if kind in PATH_KINDS}
    taken = _with_gradient(trace)
    found: dict[str, list[str]] = {}
    for weight in sorted(used - on_a_path, key=list((*trace.sites, *used)).index):
        if kinds.get(weight, "").startswith("norm"):
            continue
        if _OVER_TIME.search(weight):
            why = "acts from one time step to the next"
        elif trace.feeds is None:
            why = "a projection"
        elif not any(weight in behind for behind in feeds.values()) or (
            taken and taken.isdisjoint((weight, _WEIGHT.sub("", weight)))
        ):
            why = UNREACHED
        else:
            why = "on a shorter branch"
        found.setdefault(why, []).append(_WEIGHT.sub("", weight))
    return {why: tuple(names) for why, names in found.items()}


def _with_gradient(trace: Trace) -> set[str]:
    """The outputs and parameters that a gradient was taken of, be it infinite, at some step."""
    tables = [trace.values[name] for name in _TAKEN if name in trace.values]
    is_taken = np.zeros(len(trace.sites), dtype=bool)
    for table in tables:
        is_taken |= ~np.isnan(table).all(axis=0)
    return {site for site, taken in zip(trace.sites, is_taken, strict=True) if taken}


class _Graph:
    """Which layers stand on which chains. A site may have several weights, as attention has."""

    def __init__(self, trace: Trace, feeds: Mapping[str, tuple[str, ...]]) -> None:
        self._kinds = dict(zip(trace.sites, trace.kinds, strict=True))
        self._taken = _with_gradient(trace)
        self._sites = [site for site in trace.sites if site in feeds]
        known = set(self._sites)
        self._before = {s: [one for one in feeds[s] if one in known] for s in self._sites}
        self._weights = {s: self._weights_of(s, feeds) for s in self._sites}
        self._after: dict[str, list[str]] = {site: [] for site in self._sites}
        for site, before in self._before.items():
            for one in before:
                self._after[one].append(site)
        self._up = self._longest(self._sites, self._before)
        self._down = self._longest(self._sites[::-1], self._after)

    def _weights_of(self, site: str, feeds: Mapping[str, tuple[str, ...]]) -> list[str]:
        return [
            name
            for name in feeds[site]
            if name not in feeds
            and not (self._taken and self._taken.isdisjoint((site, name)))
            and not self._kinds.get(name, "").startswith("norm.")
            and not _OVER_TIME.search(name)
        ]

    def _longest(
        self, order: Sequence[str], towards: Mapping[str, Sequence[str]]
    ) -> dict[str, int]:
        """Site -> weights on the longest chain from it on, itself included."""
        length: dict[str, int] = {}
        for site in order:
            length[site] = len(self._weights[site]) + max(
                (length.get(one, 0) for one in towards[site]), default=0
            )
        return length

    def ends(self) -> list[str]:
        """The sites with weights before which, or behind which, none has any."""
        return [
            site
            for site in self._sites
            if (n := len(self._weights[site])) and n in (self._up[site], self._down[site])
        ]

    def path_through(self, site: str) -> tuple[Layer, ...]:
        chain = [*self._walk(site, self._before, self._up)[:0:-1],
                 *self._walk(site, self._after, self._down)]  # fmt: skip
        layers: list[Layer] = []
        seen: set[str] = set()
        for one in chain:
            for weight in self._weights[one]:
                output = self._output(one, weight)
                name = _WEIGHT.sub("", weight) + one[len(one.partition("#")[0]) :]
                if output or weight not in seen:
                    layers.append(Layer(name, "" if weight in seen else weight, output))
                seen.add(weight)
        return tuple(layers)

    def _walk(
        self, site: str, towards: Mapping[str, Sequence[str]], length: Mapping[str, int]
    ) -> list[str]:
        walked = [site]
        while towards[walked[-1]]:
            walked.append(max(towards[walked[-1]], key=length.__getitem__))
        return walked

    def _output(self, site: str, weight: str) -> str | None:
        """Only the last of several weights before one output acts on it.

        None for what was added to something else before it came to the site.
        """
        own = weight.startswith(f"{site.partition('#')[0]}.")
        if weight != self._weights[site][-1] or not (own or len(self._before[site]) < 2):
            return None
        after = self._after[site]
        is_normed = len(after) == 1 and self._kinds[after[0]] == "norm"
        return after[0] if is_normed and self._before[after[0]] == [site] else site


# -- two networks ------------------------------------------------------------------------------


def align(first: Sequence[Layer], second: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers that both networks have, by name. Raises ValueError where fewer than two do."""
    names = {layer.name for layer in second}
    common = tuple(layer for layer in first if layer.name in names)
    if len(common) < 2:
        raise ValueError(
            f"Expected two networks with at least two layers of the same name, but "
            f"{_named(first)} and {_named(second)} share {len(common)}. Compare networks built "
            "from the same blocks, or judge each on its own."
        )
    return common


def counterparts(layers: Sequence[Layer], others: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers of the same names in another network, where ∂L/∂z may lie elsewhere.

    Raises KeyError where there is none.
    """
    by_name = {other.name: other for other in others}
    return tuple(by_name[layer.name] for layer in layers)


def _named(layers: Sequence[Layer]) -> str:
    names = [layer.name for layer in layers]
    shown = [*names[:2], "…", names[-1]] if len(names) > 3 else names
    return f"({', '.join(shown)})"


# -- by name -----------------------------------------------------------------------------------


def stages_of(names: Sequence[str]) -> list[str]:
    """The stage of each layer, to choose layers by: the first part of its name.

    Where names have no parts in common, as in a Sequential or in `fc1, fc2, …`, all layers are one
    stage.

    >>> stages_of(["conv1", "layer1.0.conv1", "layer1.0.conv2", "fc"])
    ['conv1', 'layer1', 'layer1', 'fc']
    >>> stages_of(["0", "2", "4"])
    ['', '', '']
    """
    parts = [name.split(".") for name in names]
    while all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]  # `model.` of a wrapper says nothing
    firsts = [part[0] for part in parts]
    stages = ["" if first.isdigit() else first for first in firsts]
    return stages if len(set(stages)) < len(stages) else [""] * len(stages)


def _in_order(trace: Trace) -> tuple[Layer, ...]:
    """Convolutions and linear layers as they ran, without projections."""
    outputs = _outputs(trace)
    return tuple(
        Layer(site.removesuffix(".weight"), site, outputs.get(site.removesuffix(".weight")))
        for site, kind in zip(trace.sites, trace.kinds, strict=True)
        if kind in PATH_KINDS and PROJECTION not in f".{site}"
    )


def _outputs(trace: Trace) -> dict[str, str]:
    """Layer -> where the gradient of its output is read, of those that a weight layer ran at.

    A norm right behind counts only where it stands in the same module: between two blocks lies the
    addition of a skip connection, and the norm that begins the next block sees its branch alone.
    """
    sites = [
        (site, kind)
        for site, kind in zip(trace.sites, trace.kinds, strict=True)
        if "." not in kind and "#" not in site
    ]
    behind = [*sites, ("", "")][1:]
    return {
        site: after if kind_after == "norm" and _parent(after) == _parent(site) else site
        for (site, kind), (after, kind_after) in zip(sites, behind, strict=True)
        if kind in ("conv", "linear")
    }


def _parent(site: str) -> str:
    return site.rpartition(".")[0]
