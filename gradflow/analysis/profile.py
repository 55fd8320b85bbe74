"""Depth profiles: a trace reduced over steps to one number per layer, input first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradflow.analysis.layers import Layer, body, main_path, paths
from gradflow.record.measures import DERIVED
from gradflow.record.trace import Table, Trace

SMALLEST = 2.0**-149  # of float32 above zero


@dataclass(frozen=True)
class DepthProfile:
    """One measure by depth: `values` of shape (sites,), NaN where it could not be formed."""

    measure: str
    sites: tuple[str, ...]
    values: np.ndarray

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.sites),):
            raise ValueError(
                f"Expected one value for each of {len(self.sites)} sites, "
                f"but got an array of shape {self.values.shape}."
            )


@dataclass(frozen=True)
class GradientSize:
    """One way to say how large the gradient of a layer is. They answer different questions."""

    name: str
    symbol: str
    formula: str
    unit: str
    says: str
    at: str  # "weight" or "output": where of a Layer it is read
    measure: str  # recorded or derived, and over √n of a weight

    @property
    def needs(self) -> tuple[str, ...]:
        """What a Recorder must have taken."""
        return DERIVED[self.measure].needs if self.measure in DERIVED else (self.measure,)

    def is_in(self, trace: Trace) -> bool:
        return trace.values.keys() >= set(self.needs)

    def compute(self, trace: Trace, sites: Sequence[str | None]) -> np.ndarray:
        """(steps, sites); NaN at a parameter without elements, where nothing is typical."""
        values = columns(trace, self.measure, sites)
        if self.at == "output":
            return values
        sizes: dict[str | None, int] = dict(zip(trace.sites, trace.sizes, strict=True))
        n = np.array([sizes.get(site) or np.nan for site in sites], dtype=np.float64)
        return np.asarray(values / np.sqrt(n))


GRADIENT_SIZES: dict[str, GradientSize] = {
    size.name: size
    for size in (
        GradientSize(
            "output_gradient", "δ", "‖∂L/∂z‖₂ of the layer's normalised output z",
            "loss / activation",
            "how much of the gradient is transported from layer to layer", "output",
            "output_grad_norm",
        ),
        GradientSize(
            "scale_invariant", "ŝ", "‖∂L/∂w‖₂ ‖w‖₂ / √n", "loss",
            "what a small relative change of a typical weight does to the loss; blind to the "
            "scale of the weights, which means nothing under BatchNorm", "weight",
            "scale_invariant_grad",
        ),
        GradientSize(
            "gradient_rms", "g", "‖∂L/∂w‖₂ / √n", "loss / weight",
            "the raw gradient of a typical weight, as most tools show it; under BatchNorm it "
            "shrinks when weights grow, and proves nothing", "weight", "grad_norm",
        ),
    )
}  # fmt: skip


def layer_table(trace: Trace, size: str, layers: Sequence[Layer] | None = None) -> Table:
    """A gradient size of `layers`, by default the path without the classifier: steps × layers.

    Layers are named as in the path. NaN where nothing was measured. Raises KeyError where the
    trace lacks the measure.
    """
    layers = body(main_path(trace)) if layers is None else layers
    chosen = GRADIENT_SIZES[size]
    sites = [layer.output if chosen.at == "output" else layer.weight or None for layer in layers]
    return Table(trace.steps, tuple(layer.name for layer in layers), chosen.compute(trace, sites))


def columns(trace: Trace, measure: str, sites: Sequence[str | None]) -> np.ndarray:
    """(steps, sites) of a recorded or derived measure; NaN at None, and at what the trace lacks.

    "" is a site: the network itself.
    """
    table = trace.select(measure)
    at = {site: i for i, site in enumerate(table.sites)}
    values = np.full((len(trace), len(sites)), np.nan)
    found = [(i, at[site]) for i, site in enumerate(sites) if site is not None and site in at]
    if found:
        mine, theirs = map(list, zip(*found, strict=True))
        values[:, mine] = table.values[:, theirs]
    return values


def weight_sites(trace: Trace) -> tuple[str, ...]:
    """The weights on the longest path, the classifier's too, whatever was measured of them."""
    return tuple(layer.weight for layer in next(iter(paths(trace)), ()))


def weight_table(trace: Trace, measure: str = "grad_norm") -> Table:
    """`measure` of the weights on the longest path where it was taken, steps × layers.

    Without the classifier, so that every picture by depth counts the same layers.
    """
    taken = set(trace.select(measure).sites)
    path = body(next(iter(paths(trace)), ()))
    sites = tuple(layer.weight for layer in path if layer.weight in taken)
    return Table(trace.steps, sites, columns(trace, measure, sites))


def depth_profile(trace: Trace, measure: str = "grad_norm") -> DepthProfile:
    """The geometric mean over the recorded steps of each weight on the main path."""
    table = weight_table(trace, measure)
    values = geometric_mean(table.values, stands_for(table.values))
    return DepthProfile(measure, table.sites, values)


def first_to_last(trace: Trace, measure: str = "grad_norm") -> np.ndarray:
    """(steps,): the first layer's over the last's, below 1 where it shrinks towards the input.

    The classifier is left out, since a gradient of its few weights does not compare.
    """
    ends = body([layer for layer in main_path(trace) if layer.weight])
    values = columns(trace, measure, [ends[0].weight, ends[-1].weight])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(values[:, 0] / values[:, 1])


def typical(values: np.ndarray) -> np.ndarray:
    """(layers,): the geometric mean over steps; 0 for a layer that has no gradient at any of them.

    Inf where it was never finite. What is 0 or not finite at some steps is left out there.
    """
    values = np.asarray(values)
    never = np.where((values == 0).any(axis=0), 0.0, np.where(np.isinf(values).any(axis=0), np.inf,
                                                              np.nan))  # fmt: skip
    found = geometric_mean(values)
    return np.asarray(np.where(np.isnan(found), never, found))


def geometric_mean(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """exp(mean of log) over the first axis: a norm varies by factors, this is its natural centre.

    Values that are zero, NaN or inf are left out; NaN where none remain. `weights` are of the first
    axis, equal if not given.

    >>> geometric_mean(np.array([[1.0, 4.0], [100.0, np.nan]]))
    array([10.,  4.])
    """
    values = np.asarray(values, dtype=np.float64)
    usable = np.isfinite(values) & (values > 0)
    logs = np.log(values, where=usable, out=np.zeros_like(values))
    return np.asarray(np.exp(_mean_where(usable, logs, weights)))


def mean_over_steps(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The mean over the first axis of what is finite; NaN where nothing is."""
    return _mean_where(np.isfinite(values), values, weights)


def _mean_where(usable: np.ndarray, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    weight = np.ones(len(values)) if weights is None else weights
    weight = usable * weight.reshape(-1, *[1] * (values.ndim - 1))
    total, n = np.where(usable, values, 0.0), weight.sum(axis=0)
    nothing = np.full(values.shape[1:], np.nan)
    return np.asarray(np.divide((weight * total).sum(axis=0), n, where=n > 0, out=nothing))


def stands_for(values: np.ndarray) -> np.ndarray:
    """(steps,): how many recorded steps each one stands for in a mean over steps.

    That is those since the one before at which anything was taken. What is dear is taken at all of
    the first steps and then at one in so many: with equal weights the first would rule the mean.

    >>> stands_for(np.array([[1.0], [2.0], [np.nan], [np.nan], [5.0]]))
    array([1., 1., 0., 0., 3.])
    """
    weights = np.zeros(len(values))
    taken = np.flatnonzero(np.isfinite(values).any(axis=1))
    weights[taken] = np.diff(taken, prepend=-1)
    return weights
