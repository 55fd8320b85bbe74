"""The four links of "the gradients vanish, and that is why": exists, reaches, matters, causes."""

import math
from collections.abc import Sequence

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
from gradflow.analysis.rates import trace_rate
from gradflow.analysis.statistics import Interval, p_beyond, t_interval

# The raw gradient is shown but not judged: under BatchNorm it shrinks when weights grow.
JUDGED_SIZES = ("output_gradient", "scale_invariant")
NEEDS = {"output_gradient": "output_grad_norm", "scale_invariant": "grad_norm and weight_norm"}


def decades(network: TrainedNetwork, size: str, steps: np.ndarray | None = None) -> float:
    """The change from the last to the first layer in decades; NaN where it was not recorded."""
    try:
        return trace_rate(network.trace, size, steps, network.layers).decades
    except KeyError:
        return math.nan


def early_values(case: Case, size: str) -> tuple[float, ...]:
    """Decades from the last to the first layer of the accused, early in training, per seed."""
    return case.each(lambda one: decades(one, size, early(one)))


def early_decades(case: Case, size: str) -> Interval:
    """The same over seeds."""
    return t_interval(early_values(case, size))


def vanishes(case: Case) -> bool:
    """Whether a judged size shrinks more than ten-fold towards the input, early in training.

    Link 1 asks more where there is a reference: that it shrinks more than there.
    """
    return _is_beyond(case, -at.VANISHING_DECADES.value, "below")


def does_not_vanish(case: Case) -> bool:
    """Whether both judged sizes surely shrink less than ten-fold, early in training."""
    limit = -at.VANISHING_DECADES.value
    return all(
        p_beyond(early_values(case, size), limit, "above") <= 1 - at.CONFIDENCE.value
        for size in JUDGED_SIZES
    )


def explodes(case: Case) -> bool:
    """Whether a judged size grows more than ten-fold towards the input, early in training."""
    return _is_beyond(case, at.VANISHING_DECADES.value, "above")


def _is_beyond(case: Case, limit: float, side: Side) -> bool:
    alpha = (1 - at.CONFIDENCE.value) / len(JUDGED_SIZES)
    return any(p_beyond(early_values(case, size), limit, side) <= alpha for size in JUDGED_SIZES)


def exists(case: Case) -> Finding:
    """Link 1: a gradient size shrinks towards the input, and more than in the reference network."""
    parts, evidence = [], []
    for size in JUDGED_SIZES:
        of_size = [_shrinks(case, size)]
        if case.reference:
            of_size.append(_less_than_reference(case, size))
        parts.append(all_of(of_size))
        evidence += of_size
    # A size that was not recorded cannot hold, and cannot speak against it either.
    p_for, p_against = any_of(parts)
    missing = tuple(
        f"{GRADIENT_SIZES[size].symbol}: {NEEDS[size]} in the records"
        for size in JUDGED_SIZES
        if not early_decades(case, size).n
    )
    return Finding(
        "link 1",
        "it exists",
        "Do the gradients shrink towards the input while the network learns?",
        tuple(evidence),
        p_for,
        p_against,
        missing,
    )


def reaches(case: Case) -> Finding:
    """Link 2: the shrunken gradient reaches the weights, and early layers move less."""
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
    moves = [_moves_less_than_late(case)]
    if case.reference:
        moves.append(_moves_less_than_reference(case))
    ways = [all_of(moves)] + ([all_of([attenuation])] if attenuation.is_measured else [])
    p_for, p_against = any_of(ways)
    return Finding(
        "link 2",
        "it reaches the optimizer",
        "Do the early layers move less because of it?",
        (attenuation, *moves) if attenuation.is_measured else tuple(moves),
        p_for,
        p_against,
    )


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
    p_for, p_against = all_of([evidence])
    missing = () if evidence.is_measured else (
        "the weights at step 0 and at the end (`gradflow diagnose RUN --measure`)",
    )  # fmt: skip
    return Finding(
        "link 3",
        "it matters",
        "Did the early layers fail to learn?",
        (evidence,),
        p_for,
        p_against,
        missing,
    )


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
    none = Evidence(
        "share_of_gap_none", evidence.meaning, "of the gap", tuple(shares),
        at.SHARE_NONE, at.SHARE_NONE.value, "above",
    )  # fmt: skip
    missing = () if evidence.is_measured else (
        "an intervention: only changing the gradients on purpose can show a cause",
    )  # fmt: skip
    return Finding(
        "link 4",
        "it causes the gap",
        "Does the gap close when the gradients are restored?",
        (evidence, none) if evidence.is_measured else (),
        evidence.p_for,
        none.p_against,
        missing,
    )


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
        try:
            return _mean(log_ratio(mine, theirs, size, first, at_equal_loss=aligned))
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
        moved = distance_travelled(one, one.layers)
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


def _moves_less_than_reference(case: Case) -> Evidence:
    layers = case.common_layers

    def ratio(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
        return _log_mean(distance_travelled(mine, layers), "first") - _log_mean(
            distance_travelled(theirs, layers), "first"
        )

    return Evidence(
        "movement_to_reference",
        f"the relative distance that the first third of the layers travels, {case.name} "
        f"over {case.reference_name},",
        "×",
        case.pairs(ratio),
        at.MOVEMENT_RATIO,
        math.log10(at.MOVEMENT_RATIO.value),
        "below",
    )


def _log_mean(values: np.ndarray, which: str) -> float:
    chosen = values[third(len(values), which)]
    usable = chosen[np.isfinite(chosen)]  # a layer that does not move at all counts
    return math.log10(max(float(usable.mean()), SMALLEST)) if len(usable) else math.nan


def _mean(values: np.ndarray) -> float:
    usable = values[np.isfinite(values)]
    return float(usable.mean()) if len(usable) else math.nan


def _reset_cost(network: TrainedNetwork) -> float:
    reset = network.examined.get("reset", {}).get("end")
    if not reset or reset["loss_reset"] is None or reset["loss"] is None:
        return math.nan
    return float(reset["loss_reset"] - reset["loss"])
