"""Class by class: differences and mistakes by hand."""

import math

import numpy as np
import pytest

from gradflow.analysis.proportions import paired_proportions
from gradflow.training.classes import (
    part_reliability,
    recall_differences,
    worst_mistakes,
)
from gradflow.training.evaluate import Predictions, evaluate, reliability

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
