"""Class by class and image by image: where two networks differ, and where one errs most surely.

Read from the evaluation of a run. Runs of before the probabilities were kept lack them: then the
answer is None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from gradflow.analysis.statistics import t_interval
from gradflow.analysis.thresholds import CONFIDENCE, MIN_SEEDS
from gradflow.training.evaluate import Reliability, reliability

Part = Mapping[str, Any]  # one part of an evaluation: evaluation["last"]["test"]


@dataclass(frozen=True)
class RecallDifference:
    """Recall of one class in the first network less that in the second, with its interval."""

    name: str
    mean: float
    low: float
    high: float
    method: str


def recall_differences(
    first: Sequence[Part], second: Sequence[Part], class_names: Sequence[str]
) -> list[RecallDifference]:
    """Class by class, one evaluation per seed of each network, on the same images.

    From `MIN_SEEDS` on, a t interval over the paired differences. With fewer, the interval of the
    first seed's images, Newcombe's for paired proportions: it holds for these two trainings only.
    All classes together are covered with 95 % (Bonferroni: each with 1 − 0.05 / classes), so that
    the one that differs most may be picked out. Raises ValueError where the seeds do not pair.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"Expected as many evaluations of both networks, but got {len(first)} and "
            f"{len(second)}. Pair them by seed."
        )
    level = 1 - (1 - CONFIDENCE.value) / len(class_names)
    if len(first) >= MIN_SEEDS.value:
        return [_over_seeds(first, second, name, level) for name in class_names]
    return [_over_images(first[0], second[0], i, name, level) for i, name in enumerate(class_names)]


def _over_seeds(
    first: Sequence[Part], second: Sequence[Part], name: str, level: float
) -> RecallDifference:
    found = t_interval(
        [
            mine["report"][name]["recall"] - theirs["report"][name]["recall"]
            for mine, theirs in zip(first, second, strict=True)
        ],
        level,
    )
    method = f"t interval over {found.n} seeds"
    return RecallDifference(name, found.mean, found.low, found.high, method)


def _over_images(
    first: Part, second: Part, index: int, name: str, level: float
) -> RecallDifference:
    of_class = _labels(first) == index
    mine = np.asarray(first["is_right"], dtype=bool)[of_class]
    theirs = np.asarray(second["is_right"], dtype=bool)[of_class]
    both, neither = int((mine & theirs).sum()), int((~mine & ~theirs).sum())
    only_first, only_second = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    mean = (only_first - only_second) / len(mine) if len(mine) else math.nan
    low, high = paired_proportions(both, only_first, only_second, neither, level)
    method = f"Newcombe's paired interval over {len(mine)} images of one seed"
    return RecallDifference(name, mean, low, high, method)


def _labels(part: Part) -> np.ndarray:
    """The true classes; where they were not kept, the rows of the confusion matrix tell them."""
    if "labels" in part:
        return np.asarray(part["labels"])
    # Of a wrong answer the matrix alone does not tell the class of the single image.
    raise ValueError(
        "Expected the label of every image, but this run did not keep them. Train again, or give "
        f"{MIN_SEEDS.value:g} seeds or more."
    )


def paired_proportions(
    both: int,
    only_first: int,
    only_second: int,
    neither: int,
    confidence: float = CONFIDENCE.value,
) -> tuple[float, float]:
    """The interval of the difference of two proportions on the same images.

    The ends of Wilson's two intervals, added in squares, less their correlation φ:
    d − √((p₁ − l₁)² − 2φ(p₁ − l₁)(u₂ − p₂) + (u₂ − p₂)²), and alike upwards.
    Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C,
    method 10. NaN without images.
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return math.nan, math.nan
    first, second = both + only_first, both + only_second
    p1, p2 = first / n, second / n
    (l1, u1), (l2, u2) = _wilson(first, n, confidence), _wilson(second, n, confidence)
    phi = _phi(both, only_first, only_second, neither)
    down = _in_squares(p1 - l1, u2 - p2, phi)
    up = _in_squares(u1 - p1, p2 - l2, phi)
    return p1 - p2 - down, p1 - p2 + up


def _wilson(n_right: int, n: int, confidence: float) -> tuple[float, float]:
    interval = binomtest(n_right, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def _in_squares(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))


def _phi(both: int, only_first: int, only_second: int, neither: int) -> float:
    """The correlation of the two answers, with the paper's continuity correction."""
    n = both + only_first + only_second + neither
    scale = math.sqrt(
        (both + only_first) * (only_second + neither) * (both + only_second)
        * (only_first + neither)
    )  # fmt: skip
    if scale == 0:
        return 0.0
    excess = float(both * neither - only_first * only_second)
    if excess > 0:
        excess = max(excess - n / 2, 0)
    return excess / scale


def part_reliability(part: Part) -> Reliability | None:
    """The reliability diagram of a network on one part; None where probabilities were not kept."""
    if "probabilities" not in part:
        return None
    confidence = np.asarray(part["probabilities"]).max(axis=1)
    return reliability(confidence, np.asarray(part["is_right"], dtype=bool))


@dataclass(frozen=True)
class Mistake:
    """One image in a wrong class: its position in the part, and how sure the network was."""

    position: int
    label: int
    predicted: int
    probability: float  # of the predicted class


def worst_mistakes(part: Part, n: int) -> list[Mistake] | None:
    """The `n` wrong answers of which the network was surest; None where that was not kept."""
    if "probabilities" not in part:
        return None
    probabilities = np.asarray(part["probabilities"])
    predicted, labels = np.asarray(part["predicted"]), np.asarray(part["labels"])
    sure = np.where(predicted == labels, -1.0, probabilities[np.arange(len(labels)), predicted])
    order = np.argsort(-sure, kind="stable")[: min(n, int((sure >= 0).sum()))]
    return [Mistake(int(i), int(labels[i]), int(predicted[i]), float(sure[i])) for i in order]
