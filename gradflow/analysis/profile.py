"""Depth profiles: a trace reduced over steps to one number per layer, input first."""

from dataclasses import dataclass

import numpy as np

from gradflow.record.trace import Table, Trace

# Layers whose weights lie on the path from input to output. Biases and norms have other shapes,
# so that their norms do not compare; projections stand beside the path, not on it.
PATH_KINDS = ("conv.weight", "linear.weight")
PROJECTION = ".downsample."


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


def weight_table(
    trace: Trace, measure: str = "grad_norm", kinds: tuple[str, ...] = PATH_KINDS
) -> Table:
    """`measure` of the convolution and linear weights on the main path, steps × layers."""
    table = trace.select(measure, kinds)
    keep = [i for i, site in enumerate(table.sites) if PROJECTION not in f".{site}"]
    return Table(table.steps, tuple(table.sites[i] for i in keep), table.values[:, keep])


def depth_profile(trace: Trace, measure: str = "grad_norm") -> DepthProfile:
    """The geometric mean over the recorded steps of each weight on the main path."""
    table = weight_table(trace, measure)
    return DepthProfile(measure, table.sites, geometric_mean(table.values))


def first_to_last(trace: Trace, measure: str = "grad_norm") -> np.ndarray:
    """(steps,): first convolution over last convolution, below 1 where it shrinks to the input.

    The classifier is left out, since a gradient of its few weights does not compare with that of
    a convolution. In a network with fewer than two convolutions it is first over last layer.
    """
    table = weight_table(trace, measure, ("conv.weight",))
    if len(table.sites) < 2:
        table = weight_table(trace, measure)
    if len(table.sites) < 2:
        raise ValueError(
            f"Expected at least two layers with weights, but the trace has {len(table.sites)}."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(table.values[:, 0] / table.values[:, -1])


def geometric_mean(values: np.ndarray) -> np.ndarray:
    """exp(mean of log) over the first axis: a norm varies by factors, this is its natural centre.

    Values that are zero, NaN or inf are left out; NaN where none remain.

    >>> geometric_mean(np.array([[1.0, 4.0], [100.0, np.nan]]))
    array([10.,  4.])
    """
    values = np.asarray(values, dtype=np.float64)
    usable = np.isfinite(values) & (values > 0)
    logs = np.log(values, where=usable, out=np.zeros_like(values))
    n = usable.sum(axis=0)
    means = np.divide(logs.sum(axis=0), n, where=n > 0, out=np.full(values.shape[1:], np.nan))
    return np.asarray(np.exp(means))
