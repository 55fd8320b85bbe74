"""Two networks side by side: which layers receive a different gradient, and by how much."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gradflow.analysis import thresholds as at
from gradflow.analysis.case import Case
from gradflow.analysis.network import TrainedNetwork, early, equal_loss_steps, log_ratio
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.statistics import Interval, holm, p_beyond, t_interval
from gradflow.typed import to_json

At = Literal["start", "equal step", "equal loss"]
MEANINGS: dict[At, str] = {
    "start": "at the first recorded step",
    "equal step": "over the early steps that both recorded",
    "equal loss": "where their training losses reach the same levels",
}


@dataclass(frozen=True)
class LayerDifference:
    """log10 of the first network's gradient size over the second's at one layer, over seeds."""

    layer: str
    ratio: Interval  # decades
    p_value: float  # two-sided, after Holm's correction over the layers
    differs: bool

    @property
    def factor(self) -> float:
        return float(10**self.ratio.mean)


@dataclass(frozen=True)
class Comparison:
    """All common layers, for one gradient size and one way of aligning the training."""

    first: str
    second: str
    size: str
    at: At
    seeds: tuple[int, ...]
    layers: tuple[LayerDifference, ...]  # input first

    @property
    def differs(self) -> bool:
        """Whether some layer does: in three looks wrong in at most 5 % of comparisons of equals."""
        return any(layer.differs for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        layers = [
            {
                "layer": layer.layer,
                "log10_ratio": to_json(layer.ratio.mean),
                "interval": to_json([layer.ratio.low, layer.ratio.high]),
                "p_value": layer.p_value,
                "differs": layer.differs,
            }
            for layer in self.layers
        ]
        more = {"unit": "log10 of first / second", "differs": self.differs, "layers": layers}
        return dict(to_json(self) | more)


def compare(case: Case) -> list[Comparison]:
    """Every gradient size that both recorded, at the start, at equal step and at equal loss.

    Raises ValueError for a case of one network.
    """
    if not case.reference:
        raise ValueError(
            f"Expected two networks to compare, but got {case.name} alone. Give two runs, or one "
            "that holds two networks."
        )
    found = []
    for size in GRADIENT_SIZES:
        for way in MEANINGS:
            ratios = _ratios(case, size, way)
            if ratios is not None:
                found.append(_compare(case, size, way, ratios))
    return found


def _ratios(case: Case, size: str, way: At) -> np.ndarray | None:
    """(seeds, layers) in decades; None where the size was not recorded or no steps align."""
    ratios = []
    for mine, theirs in zip(case.accused, case.reference, strict=True):
        steps = _aligned_steps(mine, theirs, way)
        if not steps:
            return None
        try:
            ratios.append(log_ratio(mine, theirs, size, case.common_layers, steps))
        except KeyError:
            return None
    return np.array(ratios)


def _compare(case: Case, size: str, way: At, ratios: np.ndarray) -> Comparison:
    """`ratios` (seeds, layers) in decades."""
    p_values = holm([_two_sided(column) for column in ratios.T])
    layers = tuple(
        LayerDifference(layer.name, t_interval(column), p, p <= at.ALPHA.value)
        for layer, column, p in zip(case.common_layers, ratios.T, p_values, strict=True)
    )
    return Comparison(case.name, case.reference_name, size, way, case.seeds, layers)


def _aligned_steps(
    mine: TrainedNetwork, theirs: TrainedNetwork, way: At
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks over the recorded steps of both."""
    if way == "equal loss":
        return equal_loss_steps(mine, theirs)
    if way == "start":
        return [(np.arange(len(mine.trace)) == 0, np.arange(len(theirs.trace)) == 0)]
    common = np.intersect1d(mine.trace.steps[early(mine)], theirs.trace.steps[early(theirs)])
    if not len(common):
        return []
    return [(np.isin(mine.trace.steps, common), np.isin(theirs.trace.steps, common))]


def _two_sided(values: np.ndarray) -> float:
    """The t test over seeds that the mean differs from 0; 1 with few seeds."""
    return min(1.0, 2 * min(p_beyond(values, 0.0, "below"), p_beyond(values, 0.0, "above")))
