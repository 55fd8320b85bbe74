"""Class by class and image by image: where two networks differ, and where one errs most surely.

Read from the evaluation of a run. Runs of before the probabilities were kept lack them: then the
answer is None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradflow.analysis.proportions import paired_over_seeds
from gradflow.analysis.thresholds import CONFIDENCE
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

    The intervals stay inside [-1, 1]: Newcombe's for paired proportions and, from two seeds on,
    also a bootstrap over seeds and images (`paired_over_seeds`); that of one seed holds for these
    two trainings only. All classes together are covered with 95 % (Bonferroni: each with
    1 − 0.05 / classes), so that the one that differs most may be picked out. Raises ValueError
    where the seeds do not pair.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"Expected as many evaluations of both networks, but got {len(first)} and "
            f"{len(second)}. Pair them by seed."
        )
    level = 1 - (1 - CONFIDENCE.value) / len(class_names)
    mine, theirs = _right(first), _right(second)
    labels = _labels(first[0])
    return [
        _difference(name, mine[:, labels == i], theirs[:, labels == i], level)
        for i, name in enumerate(class_names)
    ]


def _difference(name: str, mine: np.ndarray, theirs: np.ndarray, level: float) -> RecallDifference:
    n_seeds, n = mine.shape
    mean = float(mine.mean() - theirs.mean()) if n else math.nan
    low, high = paired_over_seeds(mine, theirs, level)
    method = f"Newcombe's paired interval over {n} images"
    method += f" and a bootstrap over {n_seeds} seeds" if n_seeds > 1 else " of one seed"
    return RecallDifference(name, mean, low, high, method)


def _right(parts: Sequence[Part]) -> np.ndarray:
    """(seeds, images) bool."""
    return np.array([part["is_right"] for part in parts], dtype=bool)


def _labels(part: Part) -> np.ndarray:
    """The true class of each image, which runs of an older version did not keep."""
    if "labels" in part:
        return np.asarray(part["labels"])
    raise ValueError(
        "Expected the label of every image, but this run did not keep them. Train again."
    )


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
