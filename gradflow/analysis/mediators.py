"""The numbers of one network that the rival explanations are judged by; NaN where not measured."""

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from gradflow.analysis.case import Case
from gradflow.analysis.network import TrainedNetwork, third
from gradflow.analysis.statistics import mean
from gradflow.analysis.thresholds import LEFT_TO_LEARN

SHORTEST_STAGE = 4  # steps before the fall of the learning rate, for a slope over their second half


def dead(network: TrainedNetwork, step: str) -> dict[str, float]:
    """Stage -> share of dead channels at one step."""
    found: Mapping[str, Any] = network.examined.get("dead", {}).get(step, {})
    return {stage: n_dead / n for stage, (n_dead, n) in found.items()}


def fall_of_rate(network: TrainedNetwork) -> int | None:
    """The step at which the learning rate has fallen to a half of its top; None if it never does.

    None, too, where too few steps lie before it for a slope.
    """
    rates = network.learning_rates
    if rates is None or network.losses is None:
        return None
    top = int(np.argmax(rates))
    fallen = top + np.flatnonzero(rates[top:] <= rates[top] / 2)
    return int(fallen[0]) if len(fallen) and fallen[0] >= SHORTEST_STAGE else None


def left_to_learn(mine: TrainedNetwork, theirs: TrainedNetwork) -> float:
    """nats: what the schedule took from the accused, less half the distance to the reference.

    With the pace v of the training loss per unit of learning rate, over the second half of the
    steps before the rate falls, and Λ the sum of what the later steps lack to that rate:
    v Λ − (final loss − the reference's) / 2. The pace would slow down: v Λ is an upper bound.
    """
    drop = fall_of_rate(mine)
    if drop is None or mine.losses is None or mine.learning_rates is None or theirs.losses is None:
        return math.nan
    rate = float(mine.learning_rates[drop - 1])
    pace = -slope(mine.losses[drop // 2 : drop]) / rate
    taken = float((rate - mine.learning_rates[drop:]).sum())
    distance = _around(mine.losses, -1) - _around(theirs.losses, -1)
    return pace * taken - LEFT_TO_LEARN.value * distance


def fall_until(network: TrainedNetwork, step: int | None) -> float:
    """nats: from the first training loss to that before `step`."""
    if step is None or network.losses is None or len(network.losses) < step:
        return math.nan
    return float(network.losses[0]) - _around(network.losses, step)


def slope(losses: np.ndarray) -> float:
    """nats per step, by least squares."""
    values = np.asarray(losses, dtype=np.float64)
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def _around(losses: np.ndarray, end: int) -> float:
    """nats: the mean of the last tenth of the steps up to `end`; -1 is the end."""
    until = losses if end == -1 else losses[:end]
    return float(np.mean(until[-max(1, len(until) // 10) :]))


def at_the_end(network: TrainedNetwork, part: str, mode: str, transform: str = "plain") -> float:
    """nats: the final loss on one part of the data, under one BatchNorm mode and transform."""
    tables = network.examined.get("batchnorm", {}).get("end", {})
    try:
        return float(tables[part][transform][mode]["loss"])
    except (KeyError, TypeError):
        return math.nan


def gap(mine: TrainedNetwork, theirs: TrainedNetwork, part: str) -> float:
    """nats: the final loss of one less that of the other."""
    return at_the_end(mine, part, "running") - at_the_end(theirs, part, "running")


def mode_mismatch(network: TrainedNetwork) -> float:
    """nats: the test loss with running statistics less that with recalibrated ones."""
    running, recalibrated = (at_the_end(network, "test", m) for m in ("running", "recalibrated"))
    return running - recalibrated


def progress(network: TrainedNetwork, step: str = "10") -> float:
    """The part of a noise-free step's progress that a step makes, in (0, 1].

    1 / (1 + B_noise / B) with the noise scale B_noise and the batch size B, both in images.
    McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, equation 2.7. Where no signal is seen,
    that at the upper end of its interval.
    """
    found = network.examined.get("noise", {}).get(step, {}).get("all")
    if found is None or None in (found["noise"], found["signal"], *found["signal_interval"]):
        return math.nan
    signal = found["signal"] if found["signal"] > 0 else found["signal_interval"][1]
    noise = found["noise"] / found["batch_size"]
    return float(signal / (signal + noise)) if signal > 0 else math.nan


def deep_rank(network: TrainedNetwork) -> float:
    """The geometric mean of the effective rank over the deepest third, at steps 0 and 10."""
    by_step: Mapping[str, Any] = network.examined.get("rank", {})
    by_depth = [by_step[step]["effective_rank"] for step in ("0", "10") if step in by_step]
    deepest = [rank for ranks in by_depth for rank in ranks[third(len(ranks), "last")]]
    known = [rank for rank in deepest if rank is not None and rank > 0]
    return float(np.exp(np.mean(np.log(known)))) if known else math.nan


def probe_drop(network: TrainedNetwork) -> float:
    """Accuracy: the best over the depth less the mean of the last three, at step 10 or else 0."""
    by_step: Mapping[str, Any] = network.examined.get("rank", {})
    for step in ("10", "0"):
        accuracies = [a for a in by_step.get(step, {}).get("probe_accuracy", []) if a is not None]
        if accuracies:
            return float(max(accuracies) - np.mean(accuracies[-3:]))
    return math.nan


def log(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


# -- further numbers beside the evidence: they decide nothing, and a reader wants them -------------


def batchnorm_modes(case: Case) -> tuple[str, ...]:
    """The final loss by BatchNorm mode, part and transform: means over seeds."""
    lines = []
    groups = (case.accused, case.reference)
    for group, part, kind in product(groups, ("train", "test"), ("plain", "augmented")):
        losses = {
            mode: mean([at_the_end(one, part, mode, kind) for one in group])
            for mode in ("running", "recalibrated", "batch")
        }
        if all(map(math.isfinite, losses.values())):
            numbers = ", ".join(f"{mode} {loss:.3f}" for mode, loss in losses.items())
            what = f"loss of {group[0].name} on {kind} {part} images"
            lines.append(f"{what} by BatchNorm statistics: {numbers}")
    return tuple(lines)


def decomposition(case: Case) -> tuple[str, ...]:
    """Gap on test images = gap on training images + what comes with generalising."""
    at_test = mean(case.pairs(lambda mine, theirs: gap(mine, theirs, "test")))
    at_training = mean(case.pairs(lambda mine, theirs: gap(mine, theirs, "train")))
    if not math.isfinite(at_test + at_training):
        return ()
    return (
        f"the gap on test images, {at_test:+.3f} nats, is {at_training:+.3f} on training images "
        f"and {at_test - at_training:+.3f} from generalising",
    )
