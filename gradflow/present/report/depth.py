"""Numbers by layer: tables over the steps, profiles, and shares by power of two, over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from gradflow.analysis.layers import body, main_path
from gradflow.analysis.network import TrainedNetwork, distance_travelled
from gradflow.analysis.overview import Profile
from gradflow.analysis.profile import (
    GRADIENT_SIZES,
    columns,
    geometric_mean,
    layer_table,
    mean_over_steps,
    stands_for,
    weight_table,
)
from gradflow.analysis.statistics import mean_and_range
from gradflow.record import Trace
from gradflow.record.histograms import EXPONENTS, GRADIENTS, WEIGHTS, Histograms, span
from gradflow.record.steps import DEAD_WINDOW
from gradflow.record.trace import Table, load_histograms


@dataclass(frozen=True)
class Measure:
    """What a number by layer is: as the subject of a title, on an axis, and how that is divided."""

    says: str
    axis: str  # with its unit
    log: bool  # else the axis begins at zero
    by_kind: bool  # a line for each kind of layer, as `relu1` and `relu2`
    caption: str  # of its figure


BEHIND = "Behind each activation, over all recorded steps; the band is the range of the seeds."
ACTIVATIONS = {
    key: Measure(says, axis, log, by_kind=True, caption=BEHIND)
    for key, says, axis, log in (
        ("output_dead_window", f"channels that were off at {DEAD_WINDOW} measured steps in a row",
         "share of channels", False),
        ("output_dead_fraction", "channels that were off in a step", "share of channels", False),
        ("output_zero_fraction", "elements that are zero", "share of elements", False),
        ("output_rms", "size of the output", "√(Σz² / n), activation", True),
    )
}  # fmt: skip
UPDATES = {
    key: Measure(says, axis, log, by_kind=False, caption=caption)
    for key, says, axis, log, caption in (
        (
            "relative_update",
            "size of a step",
            "‖Δw‖ / ‖w‖ (1)",
            True,
            "The size of one step beside that of the weights, the geometric mean over the recorded "
            "steps.",
        ),
        (
            "distance",
            "way that the weights travelled",
            "Σ ‖Δw‖ / ‖w‖ (1)",
            True,
            "The sum over all steps of the relative size of the update. A layer that does not move "
            "does not learn, whatever its gradient; Adam moves layers alike, although their "
            "gradients differ.",
        ),
        (
            "angle_from_start",
            "angle between the weights at the end and at the start",
            "angle (rad)",
            False,
            "Between the weights at the end and at the start of the training, or of what was "
            "recorded of a loop of one's own. Below BatchNorm the size of a weight has no effect, "
            "and the angle is what counts.",
        ),
    )
}
ACTIVATION_KINDS = ("activation",)


Groups = Mapping[str, Sequence[TrainedNetwork]]  # by name, one per seed
Traces = Mapping[str, Sequence[Trace]]


def tables(groups: Groups) -> dict[tuple[str, str], Table]:
    """(network, gradient size) -> steps × layers: the median over seeds, see `drawn_seeds`."""
    found = {}
    for name, group in groups.items():
        drawn, steps = drawn_seeds(group)
        for size in GRADIENT_SIZES:
            try:
                of_seeds = [layer_table(one.trace, size, group[0].layers) for one in drawn]
            except KeyError:  # not recorded
                continue
            values = [one.values[np.isin(one.steps, steps)] for one in of_seeds]
            found[name, size] = Table(steps, of_seeds[0].sites, _median(np.array(values)))
    return found


def drawn_seeds(group: Sequence[TrainedNetwork]) -> tuple[Sequence[TrainedNetwork], np.ndarray]:
    """Which seeds a heat map is the median of, and the steps (n,) that all of them recorded.

    The first seed alone where they were recorded at different steps, as with `--max-overhead`.
    """
    steps = reduce(np.intersect1d, [one.trace.steps for one in group])
    shortest = min(len(one.trace) for one in group)
    if 2 * len(steps) < shortest:
        return group[:1], group[0].trace.steps
    return group, steps


def _median(values: np.ndarray) -> np.ndarray:
    """The median over the seeds, the first axis, of what is finite; NaN where nothing is."""
    median = np.ma.median(np.ma.masked_invalid(values), axis=0)  # type: ignore[no-untyped-call]
    return np.asarray(np.ma.filled(median, np.nan), dtype=np.float64)


Profiles = dict[str, dict[str, Profile]]  # by measure and network


def updates(groups: Groups) -> Profiles:
    """Updates of the path's weights; nothing that no network recorded."""
    numbers = {"relative_update": _relative_update, "distance": distance_travelled}
    return _known(
        {
            measure: {
                name: _over_seeds([layer.name for layer in group[0].layers], map(number, group))
                for name, group in groups.items()
            }
            for measure, number in numbers.items()
        }
    )


def load_traces(groups: Groups) -> Traces:
    """What `activations` and `angles` read, beyond what a verdict needs."""
    measures = (*ACTIVATIONS, "angle_from_start")
    return {
        name: [Trace.load(path, measures=measures) for path in _folders(group)]
        for name, group in groups.items()
    }


def _folders(group: Sequence[TrainedNetwork]) -> list[Path]:
    return [one.folder for one in group if one.folder is not None]


def activations(traces: Traces) -> Profiles:
    """Over all recorded steps: means of shares, geometric ones of sizes.

    Channels that are off in a step stand in where no window of steps was full.
    """
    found: Profiles = {}
    for measure in ACTIVATIONS:
        mean = geometric_mean if measure == "output_rms" else mean_over_steps
        for name, of_seeds in traces.items():
            if all(measure in trace.values for trace in of_seeds):
                chosen = [trace.select(measure, ACTIVATION_KINDS) for trace in of_seeds]
                means = (mean(one.values, stands_for(one.values)) for one in chosen)
                found.setdefault(measure, {})[name] = _over_seeds(chosen[0].sites, means)
    known = _known(found)
    if "output_dead_window" in known:
        known.pop("output_dead_fraction", None)
    return known


def angles(traces: Traces, at_end: Mapping[str, Sequence[Mapping[str, float]]]) -> Profiles:
    """How far each weight of the path had turned at the end; empty if unknown.

    `at_end` holds, by network and seed, what trainings say of each weight; of records of one's own
    loop it is the last recorded step.
    """
    measure = "angle_from_start"
    found = {}
    for name, of_seeds in traces.items():
        if name in at_end:
            path = body(main_path(of_seeds[0]))
            ends = ([one.get(layer.weight, np.nan) for layer in path] for one in at_end[name])
            found[name] = _over_seeds([layer.name for layer in path], ends)
        elif all(measure in trace.values for trace in of_seeds):
            tables = [weight_table(trace, measure) for trace in of_seeds]
            found[name] = _over_seeds(tables[0].sites, (_last_taken(one.values) for one in tables))
    return _known({measure: found})


def _last_taken(values: np.ndarray) -> np.ndarray:
    """(sites,): at the last step at which it was due; NaN where it was not finite there.

    It is due at the first steps and then at one in so many, so that the end of what is finite is
    the last such step only if no longer stretch follows than was between any two.
    """
    taken = np.flatnonzero(np.isfinite(values).any(axis=1))
    longest = np.diff(taken).max(initial=1)
    if not len(taken) or len(values) - taken[-1] > longest:
        return np.full(values.shape[1], np.nan)
    return np.asarray(values[taken[-1]])


def _relative_update(network: TrainedNetwork) -> np.ndarray:
    """(layers,): the geometric mean over the recorded steps."""
    sites = [layer.weight for layer in network.layers]
    try:
        values = columns(network.trace, "relative_update", sites)
    except KeyError:
        return np.full(len(sites), np.nan)
    return geometric_mean(values, stands_for(values))


def _over_seeds(layers: Sequence[str], of_seeds: Iterable[np.ndarray | list[float]]) -> Profile:
    return Profile(tuple(layers), *mean_and_range(np.array(list(of_seeds))))


def _known(found: Profiles) -> Profiles:
    """Without networks in which no layer has a finite value, and measures without a network."""
    known = {
        measure: {name: one for name, one in of.items() if np.isfinite(one.mean).any()}
        for measure, of in found.items()
    }
    return {measure: of for measure, of in known.items() if of}


# -- how large the elements of weights and gradients are -------------------------------------------

KINDS = {GRADIENTS: "gradients", WEIGHTS: "weights"}
MOMENTS = ("at the start", "halfway", "at the end")


@dataclass(frozen=True)
class Distribution:
    """Of the weights, or of their gradients, of one network at one moment; mean over the seeds."""

    network: str
    kind: str  # of KINDS
    moment: str  # of MOMENTS
    layers: tuple[str, ...]  # the path, input first
    exponents: np.ndarray  # (exponents,): those that some layer has an element of
    shares: np.ndarray  # (layers, exponents) of all elements, zeros among them; NaN: not counted

    def median(self, layer: int) -> float:
        """The exponent of the median element of a layer that is not 0; NaN if there is none."""
        shares = np.nan_to_num(self.shares[layer])
        if not shares.sum() > 0:
            return np.nan
        middle = np.searchsorted(np.cumsum(shares), shares.sum() / 2)
        return float(self.exponents[middle])


def distributions(groups: Groups) -> tuple[Distribution, ...]:
    """Of every network whose seeds have histograms, in the order in which they are offered."""
    found = []
    for name, group in groups.items():
        of_seeds = [load_histograms(path, at_most=len(MOMENTS)) for path in _folders(group)]
        known = [one for one in of_seeds if one is not None]
        if len(known) < len(of_seeds):
            continue
        layers = {layer.weight: layer.name for layer in group[0].layers if layer.weight}
        moments = MOMENTS if all(len(one) == len(MOMENTS) for one in known) else MOMENTS[-1:]
        for kind in KINDS:
            for step, moment in reversed(list(enumerate(moments, -len(moments)))):
                shares = mean_over_steps(
                    np.array([_of_layers(one, kind, step, list(layers)) for one in known])
                )
                part = span(np.nansum(shares, axis=0))
                if part.stop:
                    where = (tuple(layers.values()), EXPONENTS[part], shares[:, part])
                    found.append(Distribution(name, kind, moment, *where))
    return tuple(found)


def _of_layers(found: Histograms, kind: str, step: int, sites: Sequence[str]) -> np.ndarray:
    """(sites, exponents); NaN where a site was not counted."""
    at = {site: i for i, site in enumerate(found.sites)}
    shares = found.shares(kind)[step]
    nothing = np.full(shares.shape[1], np.nan)
    return np.array([shares[at[site]] if site in at else nothing for site in sites])
