"""The checks of a map against cases whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from gradflow.present.saliency import METHODS, check_method, trust
from gradflow.present.saliency.methods import ClassMaps, Method
from gradflow.present.saliency.trust import TrustCheck

SIDE = 10


@pytest.fixture
def images():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3))


class OnePixel(nn.Module):
    """The logit of class 0 is the red of the middle pixel, the other logit is 0."""

    def forward(self, x):
        value = x[:, 0, 5, 5]
        return torch.stack([value, torch.zeros_like(value)], dim=1)


# -- randomisation -----------------------------------------------------------------------------


def test_rank_correlation_equals_scipys():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 5, (2, 8, 8))  # with ties
    want = spearmanr(first.ravel(), second.ravel()).statistic
    assert trust.rank_correlation(first, second) == pytest.approx(want, abs=1e-12)


def test_equal_maps_correlate_fully_and_a_constant_has_no_ranks():
    ramp = np.arange(9.0).reshape(3, 3)
    assert trust.rank_correlation(np.ones((3, 3)), np.ones((3, 3))) == 1
    assert np.isnan(trust.rank_correlation(ramp, np.zeros((3, 3))))
    assert trust.rank_correlation(ramp, -ramp) == pytest.approx(-1)


def edges(model, images, classes):
    """The picture's own edges: a map that looks good and knows nothing of the network."""
    found = (images[..., 1:, :] - images[..., :-1, :]).abs().sum(dim=1, keepdim=True)
    found = nn.functional.pad(found, (0, 0, 0, 1))
    return ClassMaps(found.unsqueeze(1).expand(-1, classes.shape[1], -1, -1, -1))


@pytest.mark.parametrize(
    "values", [edges, lambda m, x, c: ClassMaps(torch.ones(*c.shape, 1, SIDE, SIDE))]
)
def test_a_map_that_ignores_the_weights_fails(values, linear, images, monkeypatch):
    method = Method("deaf", values, lambda v: v[..., 0, :, :], False)
    monkeypatch.setitem(METHODS, "deaf", method)
    found = check_method(linear, images, "deaf", 3)
    (randomisation, *_) = found.checks
    assert randomisation.values == pytest.approx((1, 1))
    assert randomisation.passed is False
    assert "randomisation" in found.failed
    assert found.note.startswith("fails: randomisation")


def test_a_map_made_of_the_weights_passes_randomisation(linear, images):
    found = check_method(linear, images, "integrated-gradients", 3)
    assert abs(found.checks[0].value) < 0.3
    assert found.failed == ()
    assert found.note is None


def test_a_reinitialised_network_has_other_weights_and_leaves_the_first_alone(linear):
    before = linear[1].weight.clone()
    state = torch.get_rng_state()
    first, same, other = (trust.reinitialised(linear, seed)[1].weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, before)
    assert torch.equal(linear[1].weight, before)
    assert torch.equal(state, torch.get_rng_state())


# -- infidelity --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradient", "integrated-gradients", "smoothgrad"])
def test_a_linear_networks_own_gradient_leaves_nothing_unexplained(method, linear, images):
    how, targets = METHODS[method], torch.tensor([0, 2])
    raw = trust.values_for(how, linear, images, targets)
    with torch.no_grad():
        shares = trust.unexplained(linear, images, raw, targets, how.is_local)
        assert shares == pytest.approx([0, 0], abs=1e-6)
        # A map of another class, or none at all, does not explain it; its scale does not matter.
        assert trust.unexplained(linear, images, 7 * raw, targets, how.is_local) == pytest.approx(
            shares, abs=1e-6
        )
        wrong = torch.tensor([1, 1])
        assert min(trust.unexplained(linear, images, raw, wrong, how.is_local)) > 0.5
        zero = torch.zeros_like(raw)
        assert trust.unexplained(linear, images, zero, targets, how.is_local) == [1, 1]


def test_a_logit_that_never_moves_has_no_infidelity(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3))
    nn.init.zeros_(model[1].weight)
    targets = torch.tensor([0, 0])
    with torch.no_grad():
        shares = trust.unexplained(model, images, torch.ones_like(images), targets, True)
    assert np.isnan(shares).all()


# -- sensitivity -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
def test_the_gradient_of_a_linear_network_does_not_change_with_noise(n, linear, images):
    targets = torch.tensor([0, 2])[:n]
    how = METHODS["gradient"]
    assert trust.sensitivity(how, linear, images[:n], targets) == pytest.approx([0] * n, abs=1e-6)


@pytest.mark.parametrize("n", [1, 2])
def test_sensitivity_is_the_largest_relative_change_of_the_map(n, images):
    """The map |2 x| of y = Σ x² moves with the noise itself."""

    class Square(nn.Module):
        def forward(self, x):
            y = x.square().sum(dim=(1, 2, 3))
            return torch.stack([y, 0 * y], dim=1)

    targets = torch.zeros(n, dtype=torch.int64)
    found = trust.sensitivity(METHODS["gradient"], Square(), images[:n], targets)
    generator = torch.Generator().manual_seed(0)
    copies = images[:n].repeat_interleave(trust.N_NOISY, dim=0)
    noise = (2 * torch.rand(copies.shape, generator=generator) - 1) * trust.NOISE_RADIUS
    maps = (2 * (copies + noise)).abs().amax(dim=1)
    clean = (2 * copies).abs().amax(dim=1)
    change = (maps - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)
    want = change.view(n, -1).amax(dim=1)
    assert found == pytest.approx(want.tolist(), rel=1e-4)


# -- deletion and insertion --------------------------------------------------------------------


def test_the_curves_of_a_network_that_reads_one_pixel_are_steps():
    """At the first step where the map points at it, at the last where it points away."""
    image = torch.zeros(1, 3, SIDE, SIDE)
    image[0, 0, 5, 5] = 3.0
    shown = np.zeros((1, SIDE, SIDE))
    shown[0, 5, 5] = 1.0
    with_it, without = 1 / (1 + np.exp(-3)), 0.5
    n, half_a_step = trust.N_STEPS, (1 / (1 + np.exp(-3)) - 0.5) / (2 * trust.N_STEPS)
    deletion, insertion = trust.curves(OnePixel(), image, shown, torch.tensor([0]))
    np.testing.assert_allclose(deletion[0], [with_it] + [without] * n)
    np.testing.assert_allclose(insertion[0], [without] + [with_it] * n)
    assert trust.area(deletion[0]) == pytest.approx(without + half_a_step)
    assert trust.area(insertion[0]) == pytest.approx(with_it - half_a_step)
    deletion, insertion = trust.curves(OnePixel(), image, 1 - shown, torch.tensor([0]))
    difference = trust.area(insertion[0]) - trust.area(deletion[0])
    assert difference < -0.3
    assert TrustCheck("insertion_minus_deletion", (difference,)).passed is False


# -- thresholds and answers --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("randomisation", 0.49, 0.5),
        ("infidelity", 0.89, 0.9),
        ("sensitivity", 0.99, 1.0),
        ("insertion_minus_deletion", 0.01, 0.0),
    ],
)
def test_a_value_on_either_side_of_each_threshold(name, good, bad):
    assert TrustCheck(name, (good,)).passed is True
    assert TrustCheck(name, (bad,)).passed is False
    assert TrustCheck(name, (float("nan"),)).passed is None
    assert TrustCheck(name, (good, float("nan"), good)).value == good


def test_the_model_comes_back_and_random_numbers_stay(images):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).train()  # fmt: skip
    state = torch.get_rng_state()
    for method in METHODS:
        check_method(model, images, method, 3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert model[1].num_batches_tracked == 0
