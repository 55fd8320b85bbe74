"""Rates and depth profiles of the networks of a case, over seeds, to be shown."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradflow.analysis.case import Case
from gradflow.analysis.network import TrainedNetwork, early
from gradflow.analysis.profile import GRADIENT_SIZES, geometric_mean, layer_table
from gradflow.analysis.statistics import Interval, mean_and_range, t_interval
from gradflow.typed import to_json

WINDOWS = ("start", "early", "whole")


@dataclass(frozen=True)
class RateOfGroup:
    """The rate of one gradient size in one network over one window, over seeds."""

    network: str
    size: str
    window: str
    decades_per_layer: Interval
    decades: Interval  # from the last to the first layer

    @property
    def growth(self) -> float:
        """λ, the factor of the squared size per layer."""
        return float(10 ** (2 * self.decades_per_layer.mean))

    def to_json(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "size": self.size,
            "window": self.window,
            "decades_per_layer": _interval_json(self.decades_per_layer),
            "decades": _interval_json(self.decades),
            "growth": to_json(self.growth),
        }


@dataclass(frozen=True)
class Profile:
    """One number per layer over the seeds where it is finite; NaN where it is in none."""

    layers: tuple[str, ...]
    mean: np.ndarray  # (layers,)
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Band(Profile):
    """The log10 of a gradient size of a network in one window."""

    network: str
    size: str

    def values(self) -> Profile:
        """Not their log10."""
        return Profile(self.layers, 10.0**self.mean, 10.0**self.low, 10.0**self.high)

    def to_json(self) -> dict[str, Any]:
        unit = f"log10 of {GRADIENT_SIZES[self.size].unit}"
        return {"network": self.network, "size": self.size, "unit": unit} | {
            key: to_json(getattr(self, key)) for key in ("layers", "mean", "low", "high")
        }


def _window(network: TrainedNetwork, window: str) -> np.ndarray:
    n = len(network.trace)
    if window == "early":
        return early(network)
    return np.arange(n) == 0 if window == "start" else np.ones(n, dtype=bool)


def _recorded(case: Case) -> Iterator[tuple[tuple[TrainedNetwork, ...], str]]:
    """The networks over their seeds, with each gradient size that all of these have."""
    for group in (case.accused, case.reference):
        for size, meaning in GRADIENT_SIZES.items():
            if group and all(meaning.is_in(one.trace) for one in group):
                yield group, size


def rates(case: Case) -> list[RateOfGroup]:
    """Every gradient size of every network at the start, early, and over the whole training."""
    found: list[RateOfGroup] = []
    for group, size in _recorded(case):
        for window in WINDOWS:
            of_seeds = [one.rate(size, _window(one, window)) for one in group]
            per_layer = t_interval([one.decades_per_layer for one in of_seeds])
            total = t_interval([one.decades for one in of_seeds])
            found.append(RateOfGroup(group[0].name, size, window, per_layer, total))
    return found


def bands(case: Case, window: str = "early") -> list[Band]:
    """Every gradient size of every network in one of `WINDOWS`."""
    found: list[Band] = []
    for group, size in _recorded(case):
        layers = group[0].layers
        tables = [layer_table(one.trace, size, layers).values[_window(one, window)]
                  for one in group]  # fmt: skip
        with np.errstate(divide="ignore"):
            logs = np.log10([geometric_mean(table) for table in tables])
        names = tuple(layer.name for layer in layers)
        found.append(Band(names, *mean_and_range(logs), group[0].name, size))
    return found


def _interval_json(found: Interval) -> Any:
    return to_json({"mean": found.mean, "low": found.low, "high": found.high, "n": found.n})
