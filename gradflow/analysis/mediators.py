"""The numbers of one network that the rival explanations are judged by; NaN where not measured."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gradflow.analysis.network import TrainedNetwork, early, first_drop, mean_of_layers, third
from gradflow.analysis.profile import columns

# Adam's averages hold less than e⁻¹ of their start after 1 / (1 − β₁) steps.
WARM_UP = 10
SHORTEST_STAGE = 4  # steps of one learning rate, for a slope over their second half


def first_step(network: TrainedNetwork) -> np.ndarray:
    return np.asarray(np.arange(len(network.trace)) == 0)


def share_of_first_third(network: TrainedNetwork) -> float:
    """Of Σ |⟨g, Δw⟩| over the layers, early in training, the part of the first third."""
    layers = network.layers
    try:
        changes = np.abs(columns(network.trace, "grad_dot_update", [one.weight for one in layers]))
    except KeyError:
        return math.nan
    by_layer = np.nansum(changes[early(network)], axis=0)
    total = float(by_layer.sum())
    return float(by_layer[third(len(layers), "first")].sum()) / total if total > 0 else math.nan


def is_early_step(step: int) -> bool:
    return step < WARM_UP


def is_later_step(step: int) -> bool:
    return step >= WARM_UP


def linearity(network: TrainedNetwork, chosen: Callable[[int], bool]) -> float:
    """The median ratio of the actual to the promised change of the loss, over the chosen steps.

    The median, because a step that promises next to nothing has a ratio without meaning.
    """
    by_step: Mapping[str, Any] = network.examined.get("linearity", {})
    ratios = [found["all"]["ratio"] for step, found in by_step.items() if chosen(int(step))]
    usable = [ratio for ratio in ratios if ratio is not None]
    return float(np.median(usable)) if usable else math.nan


def decorrelation(network: TrainedNetwork, step: str) -> float:
    """The share of the way after which the input gradient's cosine falls below 1/e.

    Only lags up to half of the way are seen: one that stays above it counts as 1/2, too little.
    NaN where no cosine could be formed, as where all gradients are zero.
    """
    found = network.examined.get("shattering", {}).get(step)
    if found is None:
        return math.nan
    share = found["decorrelation_share"]
    if share is None and not any(cosine is not None for cosine in found["cosines"][1:]):
        return math.nan
    return 0.5 if share is None else float(share)


def dead(network: TrainedNetwork, step: str) -> dict[str, float]:
    """Stage -> share of dead channels at one step."""
    found: Mapping[str, Any] = network.examined.get("dead", {}).get(step, {})
    return {stage: n_dead / n for stage, (n_dead, n) in found.items()}


def changed_at_the_end(network: TrainedNetwork) -> float:
    last_tenth = np.arange(len(network.trace)) >= 0.9 * len(network.trace)
    if first_drop(network) is None:
        return math.nan
    return mean_of_layers(network, "update_changed_fraction", network.layers, last_tenth)


def slope(losses: np.ndarray) -> float:
    """nats per step: least squares over the second half of the steps of one learning rate."""
    half = np.asarray(losses[len(losses) // 2 :], dtype=np.float64)
    return float(np.polyfit(np.arange(len(half)), half, 1)[0])


def slope_at_drop(network: TrainedNetwork) -> float:
    """nats per step, before the learning rate first falls."""
    drop = first_drop(network)
    if drop is None or network.losses is None or drop < SHORTEST_STAGE:
        return math.nan
    return slope(network.losses[:drop])


def fall_until_drop(network: TrainedNetwork) -> float:
    """nats: the first training loss less the mean of a tenth of the steps before the drop."""
    drop = first_drop(network)
    if drop is None or network.losses is None or drop < SHORTEST_STAGE:
        return math.nan
    n = max(1, drop // 10)
    return float(np.mean(network.losses[:1]) - np.mean(network.losses[drop - n : drop]))


def at_the_end(network: TrainedNetwork, part: str, mode: str, transform: str = "plain") -> float:
    """nats: the final loss on one part of the data, under one BatchNorm mode and transform."""
    tables = network.examined.get("batchnorm", {}).get("end", {})
    try:
        return float(tables[part][transform][mode]["loss"])
    except (KeyError, TypeError):
        return math.nan


def test_loss(network: TrainedNetwork) -> float:
    return at_the_end(network, "test", "running")


def train_loss(network: TrainedNetwork) -> float:
    return at_the_end(network, "train", "running")


def mode_mismatch(network: TrainedNetwork) -> float:
    """nats: the test loss with running statistics less that with recalibrated ones."""
    return test_loss(network) - at_the_end(network, "test", "recalibrated")


def update_rms(network: TrainedNetwork) -> float:
    """Over the early steps, without those in which Adam's averages still hold their start."""
    steps = early(network) & (network.trace.steps >= WARM_UP)
    layers = network.layers[third(len(network.layers), "first")]
    return mean_of_layers(network, "adam_update_rms", layers, steps)


def deep_rank(network: TrainedNetwork) -> float:
    """The geometric mean of the effective rank over the deepest third, at steps 0 and 10."""
    by_step: Mapping[str, Any] = network.examined.get("rank", {})
    ranks = [
        rank
        for step in ("0", "10")
        if step in by_step
        for rank in _last_third(by_step[step]["effective_rank"])
        if rank is not None and rank > 0
    ]
    return float(np.exp(np.mean(np.log(ranks)))) if ranks else math.nan


def probe_drop(network: TrainedNetwork) -> float:
    """Accuracy: the best over the depth less the mean of the last three, at step 10 or else 0."""
    by_step: Mapping[str, Any] = network.examined.get("rank", {})
    for step in ("10", "0"):
        accuracies = [a for a in by_step.get(step, {}).get("probe_accuracy", []) if a is not None]
        if accuracies:
            return float(max(accuracies) - np.mean(accuracies[-3:]))
    return math.nan


def _last_third(values: list[float | None]) -> list[float | None]:
    return values[third(len(values), "last")]


def mean(values: tuple[float, ...]) -> float:
    usable = [value for value in values if math.isfinite(value)]
    return float(np.mean(usable)) if usable else math.nan


def log(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan
