"""Rank: planted ranks come out, random matrices have the closed form's, probes read features."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradflow.examine.rank import effective_rank, features, probe_accuracy, stable_rank


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_planted_rank_with_equal_singular_values(rank: int) -> None:
    random = np.random.default_rng(rank)
    centred = random.normal(size=(60, rank))
    left, _ = np.linalg.qr(centred - centred.mean(axis=0))  # columns sum to 0
    right, _ = np.linalg.qr(random.normal(size=(20, rank)))
    table = 3 * left @ right.T + random.normal(size=20)  # the mean image does not count
    assert effective_rank(table) == pytest.approx(rank, abs=1e-6)
    assert stable_rank(table) == pytest.approx(rank, abs=1e-6)


def test_unequal_singular_values() -> None:
    """σ² = 3, 1: entropy ln 4 − (3/4) ln 3, and 4/3."""
    table = np.diag([math.sqrt(3), 1.0])
    table = np.vstack([table, -table]) / math.sqrt(2)
    assert effective_rank(table) == pytest.approx(4 / 3**0.75)
    assert stable_rank(table) == pytest.approx(4 / 3)


@pytest.mark.parametrize("table", [np.ones((5, 3)), np.full((5, 3), np.nan), np.zeros((1, 3))])
def test_features_that_do_not_vary_have_no_rank(table: np.ndarray) -> None:
    assert math.isnan(effective_rank(table))
    assert math.isnan(stable_rank(table))


def test_probe_reads_what_is_there_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 100)
    separable = 8 * np.eye(4)[labels] @ random.normal(size=(4, 30)) + random.normal(size=(400, 30))
    assert probe_accuracy(separable, labels) == 1.0
    shuffled = random.permutation(labels)
    error = math.sqrt(0.25 * 0.75 / 400)
    assert probe_accuracy(separable, shuffled) == pytest.approx(0.25, abs=3 * error)
    assert probe_accuracy(separable, labels) == probe_accuracy(separable, labels)


def test_probe_without_enough_images_has_no_answer() -> None:
    labels = np.array([0] * 5 + [1] * 4)
    assert math.isnan(probe_accuracy(np.eye(9), labels))
    assert not math.isnan(probe_accuracy(np.eye(10), np.array([0] * 5 + [1] * 5)))
    assert math.isnan(probe_accuracy(np.eye(9), np.zeros(9)))
    assert math.isnan(probe_accuracy(np.full((10, 2), np.inf), np.array([0, 1] * 5)))
    with pytest.raises(ValueError, match="Expected one label for each image, but got 9 for 10"):
        probe_accuracy(np.eye(10), labels)
    with pytest.raises(ValueError, match=r"Expected features of shape \(images, channels\)"):
        effective_rank(np.ones(3))


def test_features_are_means_over_positions_after_each_activation() -> None:
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(conv, nn.ReLU(inplace=True), pool, head, nn.GELU(), nn.Dropout(0.9))
    images = torch.randn(7, 3, 6, 6)
    found = features(model, [images[:4], images[4:]])
    assert list(found) == ["1", "4"]
    with torch.no_grad():
        first = conv(images).clamp_min(0).mean((2, 3))
        second = nn.functional.gelu(head(first))
    np.testing.assert_allclose(found["1"], first, rtol=1e-5)
    np.testing.assert_allclose(found["4"], second, rtol=1e-4, atol=1e-6)
