"""What the JSON files of a run must hold for a reader; docs/run-files.md says what it means.

A file may hold more. What older versions did not write yet is not required.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any, NotRequired, TypedDict

from gradflow.typed import typed


class EpochEntry(TypedDict):
    """Of history.json."""

    index: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    is_best: bool
    seconds: float
    step_losses: list[float]


class Loss(TypedDict):
    loss: float | None


ClassRow = TypedDict("ClassRow", {"precision": float, "recall": float, "f1-score": float,
                                  "support": float})  # fmt: skip


class PartEntry(TypedDict):
    """Of evaluation.json: one part of the data."""

    n: int
    n_correct: int
    accuracy: float
    accuracy_interval: list[float]
    balanced_accuracy: float | None
    loss: float
    cross_entropy: NotRequired[float]
    calibration_error: float
    report: dict[str, Any]  # by class a ClassRow, and numbers over all classes
    confusion_matrix: list[list[int]]
    predicted: list[int]
    is_right: list[bool]
    labels: NotRequired[list[int]]
    probabilities: NotRequired[list[list[float]]]
    recalibrated: NotRequired[Loss]


class EpochEvaluation(TypedDict):
    epoch: int
    angle_from_start: NotRequired[dict[str, float]]
    train: PartEntry
    validation: PartEntry
    test: PartEntry


class Evaluation(TypedDict):
    last: EpochEvaluation
    best: EpochEvaluation
    optimizer: NotRequired[dict[str, Any] | None]
    recording: NotRequired[dict[str, Any] | None]
    published: dict[str, Any] | None


class CheckEntry(TypedDict):
    what: str
    measured: float | None
    expected: float | None
    tolerance: float
    passed: bool | None
    by_layer: dict[str, float | None]


class InterventionEntry(TypedDict):
    name: str
    passed: bool
    checks: list[CheckEntry]


class RankEntry(TypedDict):
    effective_rank: list[float | None]
    probe_accuracy: list[float | None]


class ResetEntry(TypedDict):
    loss: float | None
    loss_reset: float | None


class NoiseOf(TypedDict):
    noise_scale: float | None


class Examination(TypedDict, total=False):
    """By measurement, and then by optimizer step or "end"."""

    dead: dict[str, dict[str, list[int]]]
    batchnorm: dict[str, dict[str, Any]]
    rank: dict[str, RankEntry]
    reset: dict[str, ResetEntry]
    noise: dict[str, dict[str, NoiseOf]]


class SplitEntry(TypedDict):
    kind: str
    seed: int
    validation_is_test: bool
    counts: dict[str, int]
    indices: dict[str, list[int]]


class AuditEntry(TypedDict):
    name: str
    n_images: int
    n_distinct: int
    n_near_distinct: int
    near_bits: int | None
    bad: list[Any]
    exact_twins: list[Any]
    near_twins: list[Any]
    near_conflicts: list[Any]


class DataEntry(TypedDict):
    """data.json."""

    classes: list[str]
    pixels_sha256: str
    keys_sha256: NotRequired[str]
    audit: AuditEntry
    split: SplitEntry


class Environment(TypedDict):
    gradflow: str
    commit: NotRequired[str | None]
    command: NotRequired[list[str] | None]
    python: str
    packages: dict[str, str]
    device: str
    mark: NotRequired[str | None]


class TrustEntry(TypedDict):
    checks: dict[str, dict[str, Any]]


class MapsEntry(TypedDict):
    layer: str | None


class SaliencyEntry(TypedDict):
    networks: dict[str, MapsEntry]
    trust: dict[str, TrustEntry]


def check_history(history: Sequence[EpochEntry], is_finished: bool) -> None:
    """Epochs follow each other, with one loss per step. Raises ValueError."""
    if is_finished and not history:
        raise ValueError("it has no epoch of a network that is trained to the end")
    step = 0
    for index, epoch in enumerate(history):
        n_losses = len(epoch["step_losses"])
        if epoch["index"] != index or n_losses < 1 or epoch["step"] != step + n_losses:
            raise ValueError(
                f"entry {index} is of epoch {epoch['index']} and ends at step {epoch['step']} "
                f"with {n_losses} losses"
            )
        step = epoch["step"]


def check_evaluation(evaluation: Mapping[str, Any], classes: Collection[str] | None) -> None:
    """Numbers of a whole evaluation fit each other, and the classes if known: ValueError."""
    n_classes = len(evaluation["last"]["test"]["confusion_matrix"] if classes is None else classes)
    for which in ("last", "best"):
        for name in ("train", "validation", "test"):
            part = evaluation[which][name]
            sizes = {key: len(part[key]) for key in ("predicted", "is_right", "labels",
                                                     "probabilities") if key in part}  # fmt: skip
            if part["n"] < 1 or set(sizes.values()) != {part["n"]}:
                raise ValueError(f"{which}/{name} has {part['n']} images, but {sizes}")
            matrix = [len(row) for row in part["confusion_matrix"]]
            rows = [len(row) for row in part.get("probabilities", ())]
            if matrix != [n_classes] * n_classes or set(rows) - {n_classes}:
                raise ValueError(f"{which}/{name} is not of {n_classes} classes")
            for answers in (part["predicted"], part.get("labels", [0])):
                if not 0 <= min(answers) <= max(answers) < n_classes:
                    raise ValueError(f"{which}/{name} has classes beyond the {n_classes}")
            if len(part["accuracy_interval"]) != 2:
                raise ValueError(f"{which}/{name} has no interval with two ends")
            _check_sizes(part, f"{which}/{name}")
            for label in classes or ():
                what = f"{label!r}, one of the classes in data.json, in {which}/{name}"
                typed(part["report"].get(label), ClassRow, what)


def _check_sizes(part: Mapping[str, Any], where: str) -> None:
    """The accuracy is that of the answers, counts add up, shares lie between 0 and 1."""
    share = sum(part["is_right"]) / part["n"]
    if not math.isclose(part["accuracy"], share, abs_tol=1e-6):
        raise ValueError(f"{where} has accuracy {part['accuracy']}, but {share} answers are right")
    counts = [count for row in part["confusion_matrix"] for count in row]
    if min(counts) < 0 or sum(counts) != part["n"]:
        raise ValueError(f"{where} has {part['n']} images, but counts of {sum(counts)}")
    shares = [*part["accuracy_interval"], *chain.from_iterable(part.get("probabilities", ()))]
    if not all(0 <= one <= 1 for one in shares):
        raise ValueError(f"{where} has shares that are not between 0 and 1")
