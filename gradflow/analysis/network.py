"""One trained network of one seed: what was measured of it, and windows of its training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradflow.analysis.layers import Layer, body, counterparts, main_path, paths
from gradflow.analysis.profile import (
    GRADIENT_SIZES,
    SMALLEST,
    columns,
    geometric_mean,
    layer_table,
    mean_over_steps,
    stands_for,
    typical,
)
from gradflow.analysis.rates import Rate, trace_rate
from gradflow.analysis.thresholds import LOSS_OVERLAP
from gradflow.record.trace import Trace

# Without a known learning rate, "early" is this share of the recorded steps.
EARLY_SHARE = 0.1
SMOOTHING = 9  # steps of the running median of the training loss
LOSS_LEVELS = 10  # at which two networks are compared at equal training loss


@dataclass(frozen=True)
class TrainedNetwork:
    """What is known of one network of one seed; what is None was not measured."""

    name: str
    seed: int
    trace: Trace
    losses: np.ndarray | None = None  # (all steps,) nats: the training loss at every step
    learning_rates: np.ndarray | None = None  # (all steps,)
    train_loss: float | None = None  # nats: training images without augmentation
    test_accuracy: float | None = None  # balanced over classes
    examined: Mapping[str, Any] = field(default_factory=dict)  # see training/examination.py
    path: int = 0  # of `paths`, along which depth is asked for
    folder: Path | None = None  # where its records lie, if they were read from there

    def __post_init__(self) -> None:
        if not len(self.trace):
            raise ValueError(
                f"Expected records of {self.name}, seed {self.seed}, but its trace is empty. "
                "Record at least one step of its training."
            )
        main_path(self.trace)  # says so where there is no depth

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The path without the classifier."""
        return body(paths(self.trace)[self.path])

    def rate(self, size: str, steps: np.ndarray | None = None) -> Rate:
        """Of a gradient size along the path; of NaN where it was not recorded."""
        if not GRADIENT_SIZES[size].is_in(self.trace):
            return Rate(np.full(len(self.layers), np.nan))
        return trace_rate(self.trace, size, steps, self.layers)


def first_drop(network: TrainedNetwork) -> int | None:
    """The first step at a lower learning rate than the one before; None if it never falls."""
    rates = network.learning_rates
    falls = np.flatnonzero(np.diff([] if rates is None else rates) < 0)
    return int(falls[0]) + 1 if len(falls) else None


def early(network: TrainedNetwork) -> np.ndarray:
    """(recorded steps,): the steps before the learning rate first falls, else the first tenth."""
    steps = network.trace.steps
    drop = first_drop(network)
    # A cosine falls after the first epoch: what comes before is too short to be a stage.
    tenth = np.arange(len(steps)) < max(1, round(EARLY_SHARE * len(steps)))
    if drop is None:
        return tenth
    return np.asarray(tenth | (steps < drop))


def third(n: int, which: str) -> slice:
    """The first or the last third of n layers, at least one."""
    size = max(1, n // 3)
    return slice(0, size) if which == "first" else slice(n - size, n)


def mean_of_layers(
    network: TrainedNetwork, measure: str, layers: Sequence[Layer], steps: np.ndarray
) -> float:
    """The arithmetic mean of a parameter measure over layers and steps; NaN where not recorded."""
    try:
        values = columns(network.trace, measure, [layer.weight for layer in layers])
    except KeyError:
        return float("nan")
    weights = np.repeat(stands_for(values)[steps], values.shape[1])
    return float(mean_over_steps(values[steps].reshape(-1), weights))


def distance_travelled(network: TrainedNetwork) -> np.ndarray:
    """(layers,): Σ over the steps of ‖Δw‖ / ‖w‖, NaN where not recorded.

    The steps between two at which it was taken stand at the mean of the two, so that schedules
    compare.
    """
    sites = [layer.weight for layer in network.layers]
    try:
        moved = columns(network.trace, "relative_update", sites)
    except KeyError:
        return np.full(len(sites), np.nan)
    was_taken = np.isfinite(moved).any(axis=1)
    steps, moved = network.trace.steps[was_taken], moved[was_taken]
    n_between = np.diff(steps, prepend=steps[:1] - 1)[:, np.newaxis] - 1
    before = np.vstack([moved[:1], moved[:-1]])
    before = np.where(np.isfinite(before), before, moved)
    moved = moved + n_between * (before + moved) / 2
    return np.asarray(np.where(np.isfinite(moved).any(axis=0), np.nansum(moved, axis=0), np.nan))


def log_ratio(
    mine: TrainedNetwork,
    theirs: TrainedNetwork,
    size: str,
    layers: Sequence[Layer],
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """(layers,): log10 of a gradient size of one over the other, the mean over pairs of masks.

    NaN where no pair has a gradient above zero in both; a layer that never has one counts, as in
    `typical`.
    """
    my_values = layer_table(mine.trace, size, layers).values
    their_values = layer_table(theirs.trace, size, counterparts(layers, theirs.layers)).values
    ratios = [geometric_mean(my_values[a]) / geometric_mean(their_values[b]) for a, b in pairs]
    found = geometric_mean(np.array(ratios))
    mine_at = typical(np.concatenate([my_values[a] for a, _ in pairs]))
    theirs_at = typical(np.concatenate([their_values[b] for _, b in pairs]))
    is_gone = (mine_at == 0) != (theirs_at == 0)
    ratio_of_ends = np.maximum(mine_at, SMALLEST) / np.maximum(theirs_at, SMALLEST)
    return np.asarray(np.log10(np.where(is_gone, ratio_of_ends, found)))


def equal_loss_steps(
    accused: TrainedNetwork, reference: TrainedNetwork
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks over the recorded steps of both, where their training losses reach the same levels.

    Ten levels between the first loss and the lowest that both reach. Of each network the recorded
    step nearest to where its smoothed loss first reaches the level. Empty where no loss is known
    or the common range is narrower than `LOSS_OVERLAP`: one of the two has then learned nothing.
    """
    if accused.losses is None or reference.losses is None:
        return []
    mine, theirs = _reached(accused.losses), _reached(reference.losses)
    high, low = min(mine[0], theirs[0]), max(mine[-1], theirs[-1])
    if not LOSS_OVERLAP.value <= high - low < np.inf:
        return []
    levels = np.linspace(high, low, LOSS_LEVELS)
    return [(_at(accused, mine, level), _at(reference, theirs, level)) for level in levels]


def _reached(losses: np.ndarray) -> np.ndarray:
    """(steps,): the lowest running median of the loss so far; a NaN is as bad as a loss gets."""
    known = np.where(np.isfinite(losses), losses, np.inf)
    padded = np.pad(known, SMOOTHING // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING)
    return np.asarray(np.minimum.accumulate(np.median(windows, axis=1)))


def _at(network: TrainedNetwork, reached: np.ndarray, level: float) -> np.ndarray:
    step = int(np.argmax(reached <= level + 1e-12))
    nearest = int(np.argmin(np.abs(network.trace.steps - step)))
    return np.asarray(np.arange(len(network.trace)) == nearest)
