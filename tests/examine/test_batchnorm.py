"""BatchNorm statistics: recalibrated ones equal NumPy's, and known shifts have known distances."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradflow.examine.batchnorm import divergence, recalibrated, with_batch_statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
    )  # fmt: skip


@pytest.fixture
def batches() -> list[Tensor]:
    """The last one is smaller, and of another mean and spread."""
    torch.manual_seed(1)
    return [torch.randn(16, 3, 8, 8), torch.randn(16, 3, 8, 8), 2 + 3 * torch.randn(5, 3, 8, 8)]


def statistics(model: nn.Module, name: str) -> tuple[np.ndarray, np.ndarray]:
    norm = model.get_submodule(name)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.numpy(), norm.running_var.numpy()


def test_first_layer_gets_the_statistics_of_all_images(batches: list[Tensor]) -> None:
    model = network()
    with torch.no_grad():
        given = model[0](torch.cat(batches)).double().numpy()
    mean, variance = statistics(recalibrated(model, batches), "1")
    np.testing.assert_allclose(mean, given.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, given.var(axis=(0, 2, 3)), rtol=1e-5)


def test_deeper_layers_are_given_what_training_gives_them(batches: list[Tensor]) -> None:
    """Layers before normalise each batch by itself; the means are weighted by its images."""
    model = network()
    with torch.no_grad():
        given = [copy.deepcopy(model).train()[:4](batch).double().numpy() for batch in batches]
    mean, variance = statistics(recalibrated(model, batches), "4")
    pooled = np.concatenate(given)
    np.testing.assert_allclose(mean, pooled.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, pooled.var(axis=(0, 2, 3)), rtol=1e-5)


def test_each_copy_normalises_with_its_own_statistics(batches: list[Tensor]) -> None:
    body = network()[:6]
    for _ in range(3):
        body(batches[2])
    images, by_batch = batches[0], with_batch_statistics(body)
    expected = copy.deepcopy(body).train()(images)
    torch.testing.assert_close(by_batch(images), expected)
    torch.testing.assert_close(by_batch(images), expected)  # nothing was updated
    for other in (copy.deepcopy(body).eval(), recalibrated(body, batches)):
        assert not torch.allclose(other(images), expected, atol=0.01)


@pytest.mark.parametrize("d", [0.0, 0.5, 3.0])
def test_a_mean_off_by_d_deviations_diverges_by_half_its_square(
    batches: list[Tensor], d: float
) -> None:
    truth = recalibrated(network(), batches)
    shifted = copy.deepcopy(truth)
    for name in ("1", "4"):
        norm = shifted.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean += d * norm.running_var.sqrt()
    found = divergence(shifted, truth)
    assert list(found) == ["1", "4"]
    assert found == pytest.approx(dict.fromkeys(found, d**2 / 2), abs=1e-4, rel=1e-4)
    again = divergence(recalibrated(shifted, batches), truth)
    assert again == pytest.approx({"1": 0, "4": 0}, abs=1e-4)


def test_divergence_is_that_of_the_running_from_the_population() -> None:
    """KL(N(0, 4) ‖ N(0, 1)) = ln(1/2) + 2 − 1/2; the other way round it would be 0.318."""
    population = nn.Sequential(nn.BatchNorm1d(3, eps=0.0))
    running = copy.deepcopy(population)
    running.load_state_dict(population.state_dict() | {"0.running_var": torch.full((3,), 4.0)})
    assert divergence(running, population)["0"] == pytest.approx(math.log(0.5) + 1.5)


def test_a_constant_channel_has_a_finite_divergence() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    images = torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    assert math.isfinite(divergence(model, recalibrated(model, [images]))["0"])


def test_a_model_without_batchnorm_comes_back_as_a_copy() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    same = recalibrated(model, [torch.randn(4, 2)])
    assert same is not model
    assert all(
        torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True)
    )
    assert divergence(model, same) == {}


def test_what_cannot_be_done_is_said(batches: list[Tensor]) -> None:
    model = network()
    with pytest.raises(ValueError, match="Expected batches .* but got none"):
        recalibrated(model, [])
    with pytest.raises(ValueError, match="Expected the same BatchNorm layers"):
        divergence(model, model[:3])
