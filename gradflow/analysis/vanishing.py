"""The four links of "the gradients vanish, and that is why": exists, reaches, matters, causes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from gradflow.analysis import thresholds as at
from gradflow.analysis.case import Case
from gradflow.analysis.findings import Evidence, Finding, Side, all_of, any_of
from gradflow.analysis.network import (
    TrainedNetwork,
    distance_travelled,
    early,
    equal_loss_steps,
    log_ratio,
    mean_of_layers,
    third,
)
from gradflow.analysis.profile import GRADIENT_SIZES, SMALLEST
from gradflow.analysis.statistics import (
    Interval,
    enough_seeds,
    mean,
    p_beyond,
    p_equivalent,
    t_interval,
)

# The raw gradient is shown but not judged: under BatchNorm it shrinks when weights grow.
JUDGED_SIZES = ("output_gradient", "scale_invariant")
Direction = Literal["vanishing", "exploding"]
SIDES: dict[Direction, Side] = {"vanishing": "below", "exploding": "above"}


def early_values(case: Case, size: str) -> tuple[float, ...]:
    """Decades from the last to the first layer of the accused, early in training, per seed."""
    return case.each(lambda one: one.rate(size, early(one)).decades)


def early_decades(case: Case, size: str) -> Interval:
    """The same over seeds."""
    return t_interval(early_values(case, size))


def n_cut_off(case: Case, size: str) -> int:
    """The seeds in which nothing at all reaches the first layer early on: no ratio says how much.

    Their `early_values` stand for the smallest number that there is, or are minus infinity where no
    layer has any. 0 for what was not recorded.
    """
    return sum(one.rate(size, early(one)).n_without > 0 for one in case.accused)


def directions(case: Case) -> set[Direction]:
    """What the judged sizes do over more than ten-fold, early in training.

    Decided over seeds, or as measured with few. Both, where one size shrinks and the other grows.
    """
    return {name for name in SIDES if sizes_that_go(case, name)}


def sizes_that_go(case: Case, where: Direction) -> list[str]:
    """The judged sizes that do over more than ten-fold towards the input."""
    side = SIDES[where]
    sign = 1 if side == "above" else -1
    limit = sign * at.VANISHING_DECADES.value
    if not enough_seeds(len(case.seeds)):
        return [s for s in JUDGED_SIZES if sign * (early_decades(case, s).mean - limit) > 0]
    alpha = at.ALPHA.value / len(JUDGED_SIZES)
    return [s for s in JUDGED_SIZES if p_beyond(early_values(case, s), limit, side) <= alpha]


def exists(case: Case) -> Finding:
    """Link 1: a gradient size shrinks towards the input, and none grows as much."""
    evidence = tuple(_shrinks(case, size) for size in JUDGED_SIZES)
    # A size that was not recorded cannot hold, and cannot speak against it either.
    p_for, p_against = any_of([all_of([one]) for one in evidence])
    details: tuple[str, ...] = ()
    if len(directions(case)) == 2:
        p_for = p_against = 1.0
        details = ("one size shrinks towards the input and the other grows: they contradict",)
    missing = tuple(
        f"{GRADIENT_SIZES[size].symbol}: {' and '.join(GRADIENT_SIZES[size].needs)} in the records"
        for size in JUDGED_SIZES
        if not early_decades(case, size).n
    )
    question = "Do the gradients shrink towards the input while the network learns?"
    return Finding("link 1", "it exists", question, evidence, p_for, p_against, missing, details)


def reaches(case: Case) -> Finding:
    """Link 2: the early layers receive less than the reference's, and it reaches the weights.

    Adam divides by the size of a gradient, so that a small one reaches the weights only as far as
    ε takes part of the step. Under another optimizer the early layers must move less than the late
    ones; how far a layer moves under Adam follows from its first weights, and is not asked.
    """
    first = case.common_layers[third(len(case.common_layers), "first")]
    attenuation = Evidence(
        "adam_attenuation",
        f"Adam's mean √v̂ / (√v̂ + ε) in the first third of {case.name}'s layers",
        "(1 = the size of the gradient cannot reach the weights)",
        case.each(lambda one: mean_of_layers(one, "adam_attenuation", first, early(one))),
        at.ATTENUATION,
        at.ATTENUATION.value,
        "below",
    )
    own = attenuation if attenuation.is_measured else _moves_less_than_late(case)
    compared = [_less_than_reference(case, size) for size in JUDGED_SIZES if case.reference]
    p_for, p_against = all_of([own])
    if compared:
        less, not_less = any_of([all_of([one]) for one in compared])
        p_for, p_against = max(p_for, less), min(1.0, 2 * min(p_against, not_less))
    question = "Do the early layers receive less, and does it reach their weights?"
    return Finding("link 2", "it reaches the weights", question, (own, *compared), p_for, p_against)


def matters(case: Case) -> Finding:
    """Link 3: the early layers learned nothing: putting them back to their start costs nothing."""
    evidence = Evidence(
        "reset_cost",
        f"the training loss of {case.name} with the first third of its layers put back to their "
        "start, less that without,",
        "nats",
        case.each(_reset_cost),
        at.LOSS_MARGIN,
        at.LOSS_MARGIN.value,
        "below",
    )
    missing = () if evidence.is_measured else ("the weights at step 0 and at the end",)
    question = "Did the early layers fail to learn?"
    return Finding("link 3", "it matters", question, (evidence,), *all_of([evidence]), missing)


def causes(case: Case, shares: Sequence[float]) -> Finding:
    """Link 4: restoring the gradients closes the gap. `shares` of the gap, one per seed."""
    evidence = Evidence(
        "share_of_gap",
        "the share of the gap that goes away when the gradients are restored",
        "of the gap",
        tuple(shares),
        at.SHARE_CONTRIBUTOR,
        at.SHARE_CONTRIBUTOR.value,
        "above",
    )
    limit = at.SHARE_NONE.value
    none = replace(evidence, name="share_of_gap_none", threshold=at.SHARE_NONE, limit=limit)
    p_for, p_against = evidence.p_for, p_equivalent(shares, limit)
    question = "Does the gap close when the gradients are restored?"
    needs = "an intervention: only changing the gradients on purpose can show a cause"
    found, missing = ((evidence, none), ()) if evidence.is_measured else ((), (needs,))
    return Finding("link 4", "it causes the gap", question, found, p_for, p_against, missing)


def _shrinks(case: Case, size: str) -> Evidence:
    meaning = GRADIENT_SIZES[size]
    return Evidence(
        f"{size}_decades",
        f"the change of {case.name}'s {meaning.symbol} ({size.replace('_', ' ')}) from the last to "
        "the first layer, early in training,",
        "decades",
        early_values(case, size),
        at.VANISHING_DECADES,
        -at.VANISHING_DECADES.value,
        "below",
    )


def _less_than_reference(case: Case, size: str) -> Evidence:
    first = case.common_layers[third(len(case.common_layers), "first")]
    # All seeds in one way, so that their numbers mean the same.
    aligned = all(case.pairs(lambda mine, theirs: bool(equal_loss_steps(mine, theirs))))

    def ratio(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        early_steps = [(early(mine), early(theirs))]
        steps = equal_loss_steps(mine, theirs) if aligned else early_steps
        try:
            return mean(log_ratio(mine, theirs, size, first, steps))
        except KeyError:
            return math.nan

    when = "at equal training loss" if aligned else "over the early steps of each"

    return Evidence(
        f"{size}_to_reference",
        f"{GRADIENT_SIZES[size].symbol} in the first third of the layers, {case.name} "
        f"over {case.reference_name} {when},",
        "×",
        case.pairs(ratio),
        at.REFERENCE_FACTOR,
        -math.log10(at.REFERENCE_FACTOR.value),
        "below",
    )


def _moves_less_than_late(case: Case) -> Evidence:
    def ratio(one: TrainedNetwork) -> float:
        moved = distance_travelled(one)
        return _log_mean(moved, "first") - _log_mean(moved, "last")

    return Evidence(
        "movement_first_to_last",
        f"the relative distance that {case.name}'s weights travel, first over last third "
        "of the layers,",
        "×",
        case.each(ratio),
        at.MOVEMENT_RATIO,
        math.log10(at.MOVEMENT_RATIO.value),
        "below",
    )


def _log_mean(values: np.ndarray, which: str) -> float:
    chosen = values[third(len(values), which)]
    usable = chosen[np.isfinite(chosen)]  # a layer that does not move at all counts
    return math.log10(max(float(usable.mean()), SMALLEST)) if len(usable) else math.nan


def _reset_cost(network: TrainedNetwork) -> float:
    reset = network.examined.get("reset", {}).get("end")
    if not reset or reset["loss_reset"] is None or reset["loss"] is None:
        return math.nan
    return float(reset["loss_reset"] - reset["loss"])
