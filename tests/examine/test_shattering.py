"""Shattering against networks whose input gradients are known in closed form."""

import json
from math import acos, cos, e, exp, isnan, pi, sin

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradflow.examine.shattering import (
    Shattering,
    cosines_by_lag,
    decorrelation_lag,
    gradient_cosine,
    gradient_path,
    input_gradients,
)


def images(n: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


# -- gradients that never, once, or always turn --------------------------------------------------


def test_a_linear_network_has_one_gradient() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double()
    first, last = images(2, 6)
    got = gradient_path(model, first, last, label=1, n=32)
    np.testing.assert_allclose(got.cosines, np.ones(16), rtol=1e-12)
    assert (got.decorrelation_share, got.decorrelation_distance) == (None, None)


class Ridge(nn.Module):
    """|x₁ − x₂| as two ReLUs: the gradient is (1, −1) on one side and (−1, 1) on the other."""

    def forward(self, x: Tensor) -> Tensor:
        difference = x[:, :1] - x[:, 1:]
        return torch.relu(difference) + torch.relu(-difference)


def test_a_gradient_that_turns_round_half_way() -> None:
    """Of the n − τ pairs τ cross the middle: R = 1 − 2τ/(n − τ)."""
    n = 100
    first, last = torch.tensor([4.0, 1.0]), torch.tensor([1.0, 4.0])
    got = gradient_path(Ridge(), first, last, label=0, n=n)
    lag = np.arange(n // 2)
    np.testing.assert_allclose(got.cosines, 1 - 2 * lag / (n - lag), atol=1e-12)
    crossing = n * (1 - 1 / e) / (3 - 1 / e)  # where that is 1/e
    assert got.decorrelation_share == pytest.approx(crossing / (n - 1), rel=1e-3)
    assert got.decorrelation_distance == pytest.approx(18**0.5 * crossing / (n - 1), rel=1e-3)


def test_two_layers_by_hand() -> None:
    """Wᵀ (v where W x > 0)."""
    torch.manual_seed(0)
    hidden, readout = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()
    model = nn.Sequential(hidden, nn.ReLU(), readout)
    first, second = images(2, 6, seed=1)
    by_hand = []
    for x in (first, second):
        is_active = hidden(x) > 0
        by_hand.append(hidden.weight.T @ (readout.weight[2] * is_active))
    cosine = by_hand[0] @ by_hand[1] / (by_hand[0].norm() * by_hand[1].norm())
    assert gradient_cosine(model, first, second, label=2) == pytest.approx(cosine.item())
    assert abs(cosine.item()) < 0.95, "the two points lie in different linear regions"


class RandomWaves(nn.Module):
    """Σ_k a_k cos(⟨w_k, x⟩ + b_k) with w ~ N(0, I): a Gaussian process of kernel exp(−‖Δx‖²/2)."""

    def __init__(self, d: int, n_waves: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = torch.randn(n_waves, d, generator=generator)
        self.a = torch.randn(n_waves, generator=generator)
        self.b = 2 * pi * torch.rand(n_waves, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        waves: Tensor = torch.cos(x @ self.w.T + self.b) @ self.a
        return waves[:, None]


def test_a_random_function_shatters_over_its_own_length() -> None:
    """The gradients' correlation is (1 − τ²/d) exp(−τ²/2): minus the kernel's Hessian's trace."""
    d, n, length = 256, 256, 64
    direction = nn.functional.normalize(images(1, d)[0], dim=0).float()
    first, last = torch.zeros(d), length * direction
    model = RandomWaves(d, 4000)
    got = gradient_path(model, first, last, label=0, n=n)
    tau = length * np.arange(n // 2) / (n - 1)
    np.testing.assert_allclose(got.cosines, (1 - tau**2 / d) * np.exp(-(tau**2) / 2), atol=0.06)
    assert got.decorrelation_distance == pytest.approx(2**0.5, rel=0.04)
    assert got.decorrelation_share == pytest.approx(2**0.5 / length, rel=0.04)

    points = torch.stack([first.lerp(last, t) for t in torch.linspace(0, 1, n).tolist()])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    shuffled = cosines_by_lag(input_gradients(model, points[order], 0))[1:]
    # Some of the pairs are near by chance: ∫ exp(−τ²/2) dτ / length = 0.04 remains.
    assert shuffled.mean() == pytest.approx((2 * pi) ** 0.5 / length, abs=0.01)
    assert np.abs(shuffled).max() < 0.15


# -- C11: the kernel of a wide ReLU network ------------------------------------------------------


def expected_cosine(theta: float, depth: int) -> float:
    """Π (1 − θ_l/π): each layer's shares of common activity, at the angle that reaches it.

    cos θ_{l+1} = (sin θ_l + (π − θ_l) cos θ_l)/π, Cho & Saul 2009.
    """
    cosine = 1.0
    for _ in range(depth):
        cosine *= 1 - theta / pi
        theta = acos((sin(theta) + (pi - theta) * cos(theta)) / pi)
    return cosine


def he_network(depth: int, width: int, n_logits: int, generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [linear(width, width, (2 / width) ** 0.5, generator), nn.ReLU()]
    return nn.Sequential(*layers, linear(width, n_logits, 1.0, generator))


def linear(n_in: int, n_out: int, std: float, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=False, device="meta")  # else it would draw twice
    weight = std * torch.randn(n_out, n_in, generator=generator)
    layer.weight = nn.Parameter(weight)
    return layer


@pytest.mark.parametrize(
    ("depth", "cosine"),
    [(1, 0.500), (2, 0.3016), pytest.param(4, 0.1416, marks=pytest.mark.slow),
     pytest.param(8, 0.0500, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_wide_he_network_shatters_by_the_arc_cosine_kernel(depth: int, cosine: float) -> None:
    """From inputs at 90°; not 1/2^depth, which takes the activity of layers as independent.

    One pair's cosine scatters by 1/√width, and a deep network's by more: 16 orthogonal inputs make
    120 pairs in each of 4 or 8 networks.
    """
    assert expected_cosine(pi / 2, depth) == pytest.approx(cosine, abs=1e-4)
    width, n, n_logits = 2048, 16, 3
    pairs = torch.triu_indices(n, n, 1)
    found = []
    for seed in range(max(4, depth)):
        generator = torch.Generator().manual_seed(seed)
        model = he_network(depth, width, n_logits, generator)
        for label in range(n_logits):
            grads = input_gradients(model, torch.eye(width)[:n], label)
            grads = nn.functional.normalize(grads)
            found.append((grads @ grads.T)[pairs[0], pairs[1]].mean().item())
    assert np.mean(found) == pytest.approx(cosine, rel=0.05)


# -- eval mode, chunks, edges --------------------------------------------------------------------


def norm_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def test_gradients_are_those_of_single_images_with_frozen_statistics() -> None:
    """Of more images than one chunk takes."""
    model = norm_net()
    photos = images(130, 108).reshape(130, 3, 6, 6)
    got = input_gradients(model, photos, label=2)
    assert all(module.training for module in model.modules())
    model.eval()
    for index in (0, 63, 64, 129):
        photo = photos[index : index + 1].clone().requires_grad_()
        model(photo)[0, 2].backward()
        assert photo.grad is not None
        torch.testing.assert_close(got[index], photo.grad[0], rtol=1e-12, atol=1e-15)


def test_the_model_is_left_as_it_was() -> None:
    model = norm_net()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_numbers = torch.get_rng_state()
    first, last = images(2, 108).reshape(2, 3, 6, 6)
    gradient_path(model, first, last, label=0, n=16)
    gradient_cosine(model, first, last, label=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert not first.requires_grad


def test_gradients_of_zero_have_no_direction() -> None:
    grads = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(cosines_by_lag(grads), [1, 0.5**0.5], rtol=1e-7)
    dead = cosines_by_lag(torch.zeros(6, 2))
    assert np.isnan(dead).all()
    assert decorrelation_lag(dead) is None


@pytest.mark.parametrize(
    ("cosines", "lag"),
    [
        ([1, 0.9, 0.5], None),
        ([1, exp(-1) - 0.1, 0.9], 1 - 0.1 / (1.1 - exp(-1))),
        ([1, exp(-1) + 0.1, exp(-1) - 0.1], 1.5),
        ([1, exp(-1) + 0.1, float("nan"), exp(-1) - 0.1], 2),
    ],
)
def test_the_decorrelation_lag_lies_between_two_points(
    cosines: list[float], lag: float | None
) -> None:
    got = decorrelation_lag(np.array(cosines))
    assert got == (None if lag is None else pytest.approx(lag))


def test_json_holds_a_thin_curve() -> None:
    cosines = np.cos(np.arange(128) / 100)
    cosines[4] = np.nan
    plain = Shattering(cosines, 256, 0.25, None).to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["lags"] == list(range(0, 128, 4))
    assert isinstance(plain["cosines"], list)
    assert plain["cosines"][:2] == [1, None]
    assert isnan(cosines[4])


@pytest.mark.parametrize(
    ("first", "last", "n", "message"),
    [
        (torch.zeros(3), torch.ones(4), 8, r"of one shape and at least 4 points, but got \(3,\)"),
        (torch.zeros(3), torch.ones(3), 3, r"but got \(3,\), \(3,\) and 3. Resize"),
        (torch.ones(3), torch.ones(3), 8, "Expected two images that differ"),
    ],
)
def test_paths_that_are_none(first: Tensor, last: Tensor, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_path(nn.Linear(3, 2), first, last, 0, n)
