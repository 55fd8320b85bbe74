"""Evaluation: predictions, the standard accuracy report, and the comparison of two networks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import (
    balanced_accuracy_score,
    classification_report,
    confusion_matrix,
)
from torch import nn

from gradflow.analysis.statistics import paired_over_seeds, wilson
from gradflow.analysis.thresholds import CONFIDENCE
from gradflow.data import Batches
from gradflow.examine.noise import in_mode

CALIBRATION_BINS = 15  # Guo et al. 2017, section 4
PROBABILITY_DECIMALS = 6


@dataclass(frozen=True)
class Predictions:
    """What a network says of some images: `logits` (n, classes) and the true `labels` (n,)."""

    logits: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.logits.ndim != 2 or self.labels.shape != (len(self.logits),):
            raise ValueError(
                "Expected logits (n, classes) and labels (n,), "
                f"but got {self.logits.shape} and {self.labels.shape}."
            )
        if not len(self.labels):
            raise ValueError("Expected at least one image to evaluate, but got none.")

    @property
    def log_probabilities(self) -> np.ndarray:
        return np.asarray(log_softmax(self.logits.astype(np.float64), axis=1))

    @property
    def predicted(self) -> np.ndarray:
        return np.asarray(self.logits.argmax(axis=1))

    @property
    def is_right(self) -> np.ndarray:
        return np.asarray(self.predicted == self.labels)

    @property
    def accuracy(self) -> float:
        return float(self.is_right.mean())

    def loss(self, label_smoothing: float) -> float:
        """Mean cross-entropy in nats: (1 − ε) · −log p_true + ε · mean over classes of −log p."""
        log_p = self.log_probabilities
        of_true = log_p[np.arange(len(self.labels)), self.labels]
        smoothed = (1 - label_smoothing) * of_true + label_smoothing * log_p.mean(axis=1)
        return float(-smoothed.mean())


@torch.no_grad()
def predict(model: nn.Module, batches: Batches, accelerator: Accelerator) -> Predictions:
    """Run `model` in eval mode over all images of `batches`, in their order, on this process."""
    logits, labels = [], []
    with in_mode(model, training=False):
        for batch in batches.epoch(0, device=accelerator.device):
            with accelerator.autocast():
                logits.append(model(batch.images).float().cpu())
            labels.append(batch.labels.cpu())
    return Predictions(torch.cat(logits).numpy(), torch.cat(labels).numpy())


def evaluate(
    predictions: Predictions,
    class_names: Sequence[str],
    label_smoothing: float,
    *,
    keep_probabilities: bool = False,
) -> dict[str, Any]:
    """The standard report of one network on one part of the data, as plain JSON types.

    With `keep_probabilities` also the label and the probabilities of every image, which the
    reliability diagram and the worst mistakes are made of.
    """
    labels, predicted = predictions.labels, predictions.predicted
    confidence = np.exp(predictions.log_probabilities.max(axis=1))
    found = reliability(confidence, predictions.is_right)
    n_correct, n = int(predictions.is_right.sum()), len(labels)
    everyone = list(range(len(class_names)))
    kept = {}
    if keep_probabilities:
        probabilities = np.exp(predictions.log_probabilities).round(PROBABILITY_DECIMALS)
        kept = {"labels": labels.tolist(), "probabilities": probabilities.tolist()}
    return kept | {
        "n": n,
        "n_correct": n_correct,
        "accuracy": n_correct / n,
        "accuracy_interval": list(wilson(n_correct, n)),
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted))
        if len(np.unique(labels)) == len(class_names)
        else None,
        "loss": predictions.loss(label_smoothing),
        "cross_entropy": predictions.loss(0.0),
        "calibration_error": found.calibration_error,
        "calibration_error_if_perfect": found.error_if_perfect,
        "report": classification_report(
            labels,
            predicted,
            labels=everyone,
            target_names=list(class_names),
            output_dict=True,
            zero_division=0,
        ),
        "confusion_matrix": confusion_matrix(labels, predicted, labels=everyone).tolist(),
        "predicted": predicted.tolist(),
        "is_right": predictions.is_right.tolist(),
    }


@dataclass(frozen=True)
class Reliability:
    """Of each bin of confidence: how sure the network was, how often right, on how many images.

    Arrays of shape (bins,); NaN where a bin is empty.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    n: np.ndarray
    variance: np.ndarray  # Σ p (1 − p): of the number of right answers, if each p were true

    @property
    def error_if_perfect(self) -> float:
        """What `calibration_error` is on average if every confidence is true: the binning's own.

        Σ_bins √(2 variance / π) / n, the mean of a normal value without its sign: with few images
        a perfectly calibrated network has an error well above 0.
        """
        return float(np.sqrt(2 * self.variance / np.pi).sum() / self.n.sum())

    @property
    def calibration_error(self) -> float:
        """Σ_bins (n_bin / n) · |accuracy − mean confidence|, in [0, 1]."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.n * gaps) / self.n.sum())


def reliability(
    confidence: np.ndarray, is_right: np.ndarray, n_bins: int = CALIBRATION_BINS
) -> Reliability:
    """Bins of equal width over the probability of the predicted class, both of shape (images,).

    Guo et al. 2017, https://arxiv.org/abs/1706.04599
    """
    # Bins are closed on the right, as in the paper: a confidence of 1 lies in the last one.
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, None)
    n = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            np.bincount(bins, weights=confidence, minlength=n_bins) / n,
            np.bincount(bins, weights=is_right, minlength=n_bins) / n,
            n,
            np.bincount(bins, weights=confidence * (1 - confidence), minlength=n_bins),
        )


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict[str, Any]:
    """The exact McNemar test of two networks on the same images.

    Of the images on which exactly one is right, each network should win half by chance: a
    two-sided binomial test. McNemar 1947, https://doi.org/10.1007/BF02295996
    """
    if first_right.shape != second_right.shape:
        raise ValueError(
            "Expected both networks on the same images, "
            f"but got {len(first_right)} and {len(second_right)}."
        )
    only_first = int((first_right & ~second_right).sum())
    only_second = int((~first_right & second_right).sum())
    n = only_first + only_second
    p_value = float(binomtest(only_first, n).pvalue) if n else 1.0
    return {"only_first_right": only_first, "only_second_right": only_second, "p_value": p_value}


# -- class by class and image by image, from what was kept -----------------------------------------

Part = Mapping[str, Any]  # one part of it: evaluation["last"]["test"]


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
