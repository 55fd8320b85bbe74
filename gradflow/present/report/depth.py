"""Numbers by layer: one seed's tables over the steps, and profiles over seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradflow.analysis.network import TrainedNetwork, distance_travelled
from gradflow.analysis.profile import (
    GRADIENT_SIZES,
    columns,
    geometric_mean,
    layer_table,
    weight_table,
)
from gradflow.record import Trace
from gradflow.record.trace import Table

# Measure -> what it is, and its unit. A profile of shares begins at zero; the others are log.
ACTIVATIONS = {
    "output_dead_window": "channels that were off over 16 recorded steps, share",
    "output_dead_fraction": "channels that were off in a step, share",
    "output_zero_fraction": "elements that are zero, share",
    "output_rms": "size of the output, √(Σz² / n)",
}
UPDATES = {
    "relative_update": "size of a step, ‖Δw‖ / ‖w‖",
    "distance": "way of the weights, Σ ‖Δw‖ / ‖w‖",
    "angle_from_start": "angle between the weights at the end and at the start, rad",
}
ACTIVATION_KINDS = ("activation",)


@dataclass(frozen=True)
class Profile:
    """One number per layer and network over seeds: arrays of shape (layers,)."""

    layers: tuple[str, ...]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


Groups = Mapping[str, Sequence[TrainedNetwork]]  # by name, one per seed
Traces = Mapping[str, Sequence[Trace]]


def tables(groups: Groups) -> dict[tuple[str, str], Table]:
    """(network, gradient size) -> steps × layers of the first seed."""
    found = {}
    for name, group in groups.items():
        for size in GRADIENT_SIZES:
            try:
                found[name, size] = layer_table(group[0].trace, size, group[0].layers)
            except KeyError:  # not recorded
                continue
    return found


def updates(groups: Groups) -> dict[str, dict[str, Profile]]:
    """Of the weights of the path, by measure and network; without what no network recorded."""
    numbers = {"relative_update": _relative_update, "distance": _distance}
    found = {
        measure: {name: _profile(group, number) for name, group in groups.items()}
        for measure, number in numbers.items()
    }
    return {
        measure: known
        for measure, profiles in found.items()
        if (known := {name: one for name, one in profiles.items() if np.isfinite(one.mean).any()})
    }


def load_traces(folders: Mapping[str, Sequence[Path]]) -> Traces:
    """What `activations` and `angles` read, beyond what a verdict needs."""
    measures = (*ACTIVATIONS, "angle_from_start")
    return {
        name: [Trace.load(path, measures=measures) for path in paths]
        for name, paths in folders.items()
    }


def activations(traces: Traces) -> dict[str, dict[str, Profile]]:
    """By measure and network, over all recorded steps: means of shares, geometric of sizes.

    Channels that are off in a step stand in where no window of steps was full.
    """
    found: dict[str, dict[str, Profile]] = {}
    for measure in ACTIVATIONS:
        for name, of_seeds in traces.items():
            if all(measure in trace.values for trace in of_seeds):
                chosen = [trace.select(measure, ACTIVATION_KINDS) for trace in of_seeds]
                profile = _over_seeds(chosen, geometric_mean if measure == "output_rms" else _mean)
                if np.isfinite(profile.mean).any():
                    found.setdefault(measure, {})[name] = profile
    if "output_dead_window" in found:
        found.pop("output_dead_fraction", None)
    return found


def angles(traces: Traces) -> dict[str, dict[str, Profile]]:
    """How far each weight of the path had turned at the last recorded step; empty if unknown."""
    measure = "angle_from_start"
    found = {
        name: _over_seeds([weight_table(trace, measure) for trace in of_seeds], lambda v: v[-1])
        for name, of_seeds in traces.items()
        if all(measure in trace.values for trace in of_seeds)
    }
    return {measure: found} if found else {}


def _profile(
    group: Sequence[TrainedNetwork], number: Callable[[TrainedNetwork], np.ndarray]
) -> Profile:
    values = np.array([number(one) for one in group])
    layers = tuple(layer.name for layer in group[0].layers)
    return Profile(layers, values.mean(0), values.min(0), values.max(0))


def _distance(network: TrainedNetwork) -> np.ndarray:
    return distance_travelled(network, network.layers)


def _relative_update(network: TrainedNetwork) -> np.ndarray:
    """(layers,): the geometric mean over the recorded steps."""
    sites = [layer.weight for layer in network.layers]
    try:
        return geometric_mean(columns(network.trace, "relative_update", sites))
    except KeyError:
        return np.full(len(sites), np.nan)


def _over_seeds(of_seeds: Sequence[Table], number: Callable[[np.ndarray], np.ndarray]) -> Profile:
    values = np.array([number(one.values) for one in of_seeds])
    return Profile(of_seeds[0].sites, values.mean(0), values.min(0), values.max(0))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over steps; a window of steps has no value until it is full."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=0)
    return np.asarray(np.divide(total, known.sum(axis=0), where=known.any(axis=0),
                                out=np.full(values.shape[1], np.nan)))  # fmt: skip
