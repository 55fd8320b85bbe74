"""Evaluation against scikit-learn, PyTorch, published tables and counting by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score

from gradflow.analysis.statistics import paired_proportions
from gradflow.training.evaluate import (
    Predictions,
    evaluate,
    mcnemar,
    part_reliability,
    recall_differences,
    reliability,
    worst_mistakes,
)
from gradflow.training.original import CLASSES, PUBLISHED, published


def some_predictions(n: int = 200, n_classes: int = 4) -> Predictions:
    random = np.random.default_rng(0)
    labels = random.integers(0, n_classes, n)
    logits = random.normal(size=(n, n_classes)) + 2 * np.eye(n_classes)[labels]
    return Predictions(logits.astype(np.float32), labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_pytorchs(smoothing: float) -> None:
    predictions = some_predictions()
    want = F.cross_entropy(
        torch.from_numpy(predictions.logits),
        torch.from_numpy(predictions.labels),
        label_smoothing=smoothing,
    )
    assert predictions.loss(smoothing) == pytest.approx(want.item(), rel=1e-5)


def test_report_is_scikit_learns() -> None:
    predictions = some_predictions()
    got = evaluate(predictions, "abcd", 0.2)
    labels, predicted = predictions.labels, predictions.logits.argmax(1)
    assert got["accuracy"] == accuracy_score(labels, predicted)
    assert got["report"]["macro avg"]["f1-score"] == pytest.approx(
        f1_score(labels, predicted, average="macro")
    )
    assert np.sum(got["confusion_matrix"]) == 200
    assert np.trace(got["confusion_matrix"]) == got["n_correct"] == sum(got["is_right"])


def test_a_class_without_test_images_is_no_error() -> None:
    predictions = Predictions(np.eye(3)[[0, 1, 0]], np.array([0, 1, 0]))
    got = evaluate(predictions, ["a", "b", "c"], 0.0)
    assert got["report"]["c"]["support"] == 0
    assert got["balanced_accuracy"] is None


def test_mcnemar_is_the_binomial_tail() -> None:
    """2 against 8 discordant images: p = 2 · Σ_{k≤2} C(10, k) / 2¹⁰ = 112 / 1024."""
    first = np.array([True] * 2 + [False] * 8 + [True] * 5)
    second = np.array([False] * 2 + [True] * 8 + [True] * 5)
    got = mcnemar(first, second)
    assert (got["only_first_right"], got["only_second_right"]) == (2, 8)
    assert got["p_value"] == pytest.approx(112 / 1024)
    assert mcnemar(first, first)["p_value"] == 1.0
    with pytest.raises(ValueError, match="the same images, but got 15 and 3"):
        mcnemar(first, second[:3])


def error_of(predictions: Predictions) -> float:
    confidence = np.exp(predictions.log_probabilities.max(axis=1))
    return reliability(confidence, predictions.is_right).calibration_error


def test_a_perfectly_calibrated_network_has_the_error_of_the_binning() -> None:
    """On 137 images, as of the original study's photographs: simulated, about 0.1."""
    random = np.random.default_rng(0)
    confidence = random.uniform(0.3, 0.9, 137)
    draws = random.uniform(size=(500, 137)) < confidence
    errors = [reliability(confidence, right).calibration_error for right in draws]
    expected = reliability(confidence, draws[0]).error_if_perfect
    assert expected == pytest.approx(np.mean(errors), rel=0.05)
    assert 0.08 < expected < 0.12


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.9 sure and half right, 0.6 sure and all right: (2·0.4 + 2·0.4) / 4."""
    probability = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    predictions = Predictions(np.log(probability), np.array([0, 1, 0, 0]))
    assert error_of(predictions) == pytest.approx(0.4)
    sure_and_right = Predictions(np.array([[100.0, 0.0]]), np.array([0]))
    assert error_of(sure_and_right) == pytest.approx(0.0, abs=1e-12)


def test_published_numbers_are_given_for_the_original_classes_only() -> None:
    assert published("plain_34", sorted(CLASSES)) is PUBLISHED["plain_34"]
    assert published("plain_34", ["cat", "dog"]) is None
    assert published("plain_18", CLASSES) is None
    for arch, n_correct in (("plain_34", 95), ("resnet_34", 149)):
        accuracy = PUBLISHED[arch]["test_accuracy"]
        assert accuracy == pytest.approx(n_correct / PUBLISHED[arch]["n_test"], abs=5e-5)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros(3, int), r"logits \(n, classes\) and labels \(n,\)"),
        (np.zeros((0, 3)), np.zeros(0, int), "at least one image"),
    ],
)
def test_predictions_check_themselves(logits, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictions(logits, labels)


# -- class by class and image by image -------------------------------------------------------------

NAMES = ("bakso", "rendang")


def part(logits: list[list[float]], labels: list[int]) -> dict:
    predictions = Predictions(np.array(logits), np.array(labels))
    return evaluate(predictions, NAMES, 0.0, keep_probabilities=True)


def random_part(seed: int, n: int = 40) -> dict:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    logits = random.normal(size=(n, 2)) + 1.5 * np.eye(2)[labels]
    return part(logits.tolist(), labels.tolist())


def test_the_reliability_of_kept_probabilities_is_the_calibration_error_of_the_report() -> None:
    found = random_part(0)
    bins = part_reliability(found)
    assert bins is not None
    assert bins.n.sum() == 40
    assert bins.calibration_error == pytest.approx(found["calibration_error"], abs=1e-5)


def test_a_bin_holds_its_mean_confidence_and_accuracy() -> None:
    bins = reliability(np.array([0.55, 0.6, 1.0]), np.array([True, False, True]), n_bins=2)
    np.testing.assert_allclose(bins.confidence, [np.nan, (0.55 + 0.6 + 1) / 3])
    np.testing.assert_allclose(bins.accuracy, [np.nan, 2 / 3])
    assert bins.n.tolist() == [0, 3]


def test_recall_differences_over_three_seeds_are_means_with_intervals_that_are_possible() -> None:
    labels = random_part(0)["labels"]

    def seed(k: int) -> dict:
        logits = np.random.default_rng(k).normal(size=(40, 2)) + 1.5 * np.eye(2)[labels]
        return part(logits.tolist(), labels)

    first, second = ([seed(i + k) for i in range(3)] for k in (0, 10))
    for one in recall_differences(first, second, NAMES):
        recalls = [
            a["report"][one.name]["recall"] - b["report"][one.name]["recall"]
            for a, b in zip(first, second, strict=True)
        ]
        assert one.mean == pytest.approx(np.mean(recalls))
        assert -1 <= one.low < one.mean < one.high <= 1
        assert one.high - one.low < 1  # a t interval over three seeds would be useless
        assert "bootstrap over 3 seeds" in one.method


def test_with_one_seed_the_difference_is_that_of_its_images() -> None:
    # bakso: right, right, wrong against right, wrong, wrong; rendang: both right.
    first = part([[2, 0], [2, 0], [0, 2], [0, 2]], [0, 0, 0, 1])
    second = part([[2, 0], [0, 2], [0, 2], [0, 2]], [0, 0, 0, 1])
    bakso, rendang = recall_differences([first], [second], NAMES)
    assert bakso.mean == pytest.approx(1 / 3)
    assert (bakso.low, bakso.high) == paired_proportions(1, 1, 0, 1, 0.975)
    assert rendang.mean == 0
    assert "one seed" in bakso.method


def test_without_labels_one_seed_says_what_to_do() -> None:
    old = {key: value for key, value in random_part(0).items() if key != "labels"}
    with pytest.raises(ValueError, match="did not keep them. Train again"):
        recall_differences([old], [old], NAMES)
    with pytest.raises(ValueError, match="as many evaluations of both"):
        recall_differences([old], [], NAMES)


def test_worst_mistakes_are_the_surest_wrong_answers() -> None:
    found = part([[3, 0], [0, 1], [0, 4], [0, 2]], [0, 0, 0, 1])
    mistakes = worst_mistakes(found, 5)
    assert mistakes is not None
    assert [one.position for one in mistakes] == [2, 1]
    assert mistakes[0].probability == pytest.approx(1 / (1 + math.exp(-4)), abs=1e-6)
    assert (mistakes[0].label, mistakes[0].predicted) == (0, 1)


def test_a_run_without_probabilities_says_that_they_were_not_kept() -> None:
    old = {key: value for key, value in random_part(0).items() if key != "probabilities"}
    assert worst_mistakes(old, 3) is None
    assert part_reliability(old) is None
