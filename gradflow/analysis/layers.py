"""The layers on the way from input to output, and where the gradients of each are read."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradflow.record.trace import Trace

# Layers whose weights lie on the path from input to output. Biases and norms have other shapes,
# so that their norms do not compare; projections stand beside the path, not on it.
PATH_KINDS = ("conv.weight", "linear.weight")
PROJECTION = ".downsample."


@dataclass(frozen=True)
class Layer:
    """A weight layer on the path; `stage` groups the layers whose values compare directly."""

    weight: str  # the parameter: "layer1.0.conv1.weight"
    output: str | None  # where ∂L/∂z is read: the norm right behind it, else the layer itself
    stage: str

    @property
    def name(self) -> str:
        return self.weight.removesuffix(".weight")


def main_path(trace: Trace) -> tuple[Layer, ...]:
    """The weight layers from input to output, without projections.

    Raises ValueError where there are fewer than two: no profile by depth can be drawn.
    """
    weights = [
        site
        for site, kind in zip(trace.sites, trace.kinds, strict=True)
        if kind in PATH_KINDS and PROJECTION not in f".{site}"
    ]
    if len(weights) < 2:
        raise ValueError(
            f"Expected at least two layers with weights, but the trace has {len(weights)}. "
            "A question about depth needs a network with depth."
        )
    outputs = _outputs(trace)
    stages = stages_of([weight.removesuffix(".weight") for weight in weights])
    return tuple(
        Layer(weight, outputs.get(weight.removesuffix(".weight")), stage)
        for weight, stage in zip(weights, stages, strict=True)
    )


def body(path: Sequence[Layer]) -> tuple[Layer, ...]:
    """The path without its last layer, the classifier.

    Its few weights, and its place behind the pooling, do not compare with those of the others.
    """
    return tuple(path[:-1]) if len(path) > 2 else tuple(path)


def stages_of(names: Sequence[str]) -> list[str]:
    """The stage of each layer: the first part of its name.

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


def align(first: Sequence[Layer], second: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers that stand in both networks, by stage, block and place in the block.

    Raises ValueError where fewer than two do.
    """
    names = {layer.weight for layer in second}
    common = tuple(layer for layer in first if layer.weight in names)
    if len(common) < 2:
        raise ValueError(
            f"Expected two networks with at least two layers of the same name, but "
            f"{_named(first)} and {_named(second)} share {len(common)}. Compare networks built "
            "from the same blocks, or judge each on its own."
        )
    return common


def counterparts(layers: Sequence[Layer], others: Sequence[Layer]) -> tuple[Layer, ...]:
    """Of each layer the one of the same name in another network, where ∂L/∂z may lie elsewhere.

    Raises KeyError where there is none.
    """
    by_weight = {other.weight: other for other in others}
    return tuple(by_weight[layer.weight] for layer in layers)


def _named(layers: Sequence[Layer]) -> str:
    names = [layer.name for layer in layers]
    shown = [*names[:2], "…", names[-1]] if len(names) > 3 else names
    return f"({', '.join(shown)})"


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
