"""What a report says: everything read from runs once, before anything is drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradflow.analysis.compare import Comparison, LayerDifference, compare
from gradflow.analysis.network import TrainedNetwork, distance_travelled
from gradflow.analysis.profile import GRADIENT_SIZES, geometric_mean, layer_table
from gradflow.analysis.verdict import Verdict, judge_case
from gradflow.controls.gate import load_gate
from gradflow.record import Trace
from gradflow.record.trace import Table
from gradflow.training.diagnosis import network_dirs, open_case
from gradflow.training.evaluate import mcnemar
from gradflow.training.rundir import NetworkDir, RunDir

# Of the outputs of activations, by depth: measure -> what it is.
ACTIVATIONS = {
    "output_dead_window": "channels that were off over 16 recorded steps, share",
    "output_zero_fraction": "elements that are zero, share",
    "output_rms": "size of the output, √(Σz² / n)",
}
ACTIVATION_KINDS = ("activation",)


@dataclass(frozen=True)
class Profile:
    """One number per layer and network over seeds: arrays of shape (layers,)."""

    layers: tuple[str, ...]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Trained:
    """What training left of one network of one seed."""

    arch: str
    seed: int
    history: list[dict[str, Any]]
    evaluation: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """All that a page shows. What a run does not have is empty, and `missing` says why."""

    verdict: Verdict
    comparisons: tuple[Comparison, ...]
    tables: dict[tuple[str, str], Table]  # (network, gradient size): steps × layers, first seed
    activations: dict[str, dict[str, Profile]]  # measure, network
    distance: dict[str, Profile]  # network: Σ ‖Δw‖ / ‖w‖
    trained: tuple[Trained, ...] = ()
    class_names: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    saliency: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The networks, the accused first."""
        case = self.verdict.case
        return (case.name, case.reference_name) if case.reference else (case.name,)

    def of(self, arch: str) -> list[Trained]:
        """One per seed, in the order of the seeds."""
        return sorted((one for one in self.trained if one.arch == arch), key=lambda one: one.seed)

    @property
    def largest_difference(self) -> tuple[Comparison, LayerDifference] | None:
        """The layer whose δ differs most between the networks, at equal step."""
        for one in self.comparisons:
            known = [layer for layer in one.layers if np.isfinite(layer.ratio.mean)]
            if (one.size, one.at) == ("output_gradient", "equal step") and known:
                return one, max(known, key=lambda layer: abs(layer.ratio.mean))
        return None

    def mcnemar(self) -> list[dict[str, Any]]:
        """The exact test between the two networks, per seed, at the last epoch."""
        if len(self.names) < 2:
            return []
        found = []
        for mine, theirs in zip(*(self.of(name) for name in self.names), strict=False):
            right = [
                np.asarray(one.evaluation["last"]["test"]["is_right"], dtype=bool)
                for one in (mine, theirs)
            ]
            if mine.seed == theirs.seed:
                found.append({"seed": mine.seed} | mcnemar(*right))
        return found


def collect(
    runs: Sequence[Path], *, accused: str | None = None, reference: str | None = None
) -> Report:
    """Read runs as `gradflow diagnose` does. Raises FileNotFoundError, ValueError."""
    case = open_case(runs, accused=accused, reference=reference)
    verdict = judge_case(case, load_gate())
    folders = [folder for path in runs for folder in network_dirs(path.resolve())]
    names = {case.name, case.reference_name}
    seeds = set(case.seeds)
    shown = [one for one in folders if one.is_finished and one.arch in names and one.seed in seeds]
    groups = {group[0].name: group for group in (case.accused, case.reference) if group}
    first_run = RunDir.open(shown[0].path.parent) if shown else None
    return Report(
        verdict=verdict,
        comparisons=tuple(compare(case)) if case.reference else (),
        tables=_tables(groups),
        activations=_activations(shown),
        distance={name: _profile(group, _distance) for name, group in groups.items()},
        trained=tuple(
            Trained(one.arch, one.seed, one.history(), one.evaluation()) for one in shown
        ),
        missing=_missing(verdict, shown),
        **({} if first_run is None else _facts(first_run)),
    )


def _facts(run: RunDir) -> dict[str, Any]:
    """What is the same for all networks of the runs."""
    data = run.data()
    return {
        "class_names": tuple(data["classes"]),
        "data": data,
        "config": {name: str(value) for name, value in vars(run.config()).items()},
        "environment": run.environment(),
        "saliency": tuple(run.saliency_figures()),
    }


def _tables(groups: dict[str, tuple[TrainedNetwork, ...]]) -> dict[tuple[str, str], Table]:
    found = {}
    for name, group in groups.items():
        for size in GRADIENT_SIZES:
            try:
                found[name, size] = layer_table(group[0].trace, size, group[0].layers)
            except KeyError:  # not recorded
                continue
    return found


def _profile(
    group: Sequence[TrainedNetwork], number: Callable[[TrainedNetwork], np.ndarray]
) -> Profile:
    values = np.array([number(one) for one in group])
    layers = tuple(layer.name for layer in group[0].layers)
    return Profile(layers, values.mean(0), values.min(0), values.max(0))


def _distance(network: TrainedNetwork) -> np.ndarray:
    return distance_travelled(network, network.layers)


def _activations(networks: Sequence[NetworkDir]) -> dict[str, dict[str, Profile]]:
    """Over all recorded steps: the mean of shares, the geometric mean of sizes."""
    by_arch: dict[str, list[Trace]] = {}
    for one in networks:
        trace = Trace.load(one.path, measures=tuple(ACTIVATIONS))
        by_arch.setdefault(one.arch, []).append(trace)
    found: dict[str, dict[str, Profile]] = {}
    for arch, traces in by_arch.items():
        for measure in ACTIVATIONS:
            if all(measure in trace.values for trace in traces):
                tables = [trace.select(measure, ACTIVATION_KINDS) for trace in traces]
                if tables[0].sites:
                    found.setdefault(measure, {})[arch] = _over_seeds(tables, measure)
    return found


def _over_seeds(tables: Sequence[Table], measure: str) -> Profile:
    is_size = measure == "output_rms"
    values = np.array(
        [geometric_mean(one.values) if is_size else _mean(one.values) for one in tables]
    )
    return Profile(tables[0].sites, values.mean(0), values.min(0), values.max(0))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over steps; a window of steps has no value until it is full."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=0)
    return np.asarray(np.divide(total, known.sum(axis=0), where=known.any(axis=0),
                                out=np.full(values.shape[1], np.nan)))  # fmt: skip


def _missing(verdict: Verdict, shown: Sequence[NetworkDir]) -> tuple[str, ...]:
    """What a reader may look for and not find, and how to get it."""
    lines = []
    if not shown:
        lines.append(
            "These are records of a loop of your own: gradflow knows no accuracies, images or "
            "settings of it."
        )
    if not verdict.case.reference:
        lines.append("There is one network: nothing is said of a difference between two.")
    if shown and any("probabilities" not in one.evaluation()["last"]["test"] for one in shown):
        lines.append(
            "The probabilities of single images were not kept by the version that trained: no "
            "calibration and no worst mistakes. Train again to have them."
        )
    return tuple(lines)
