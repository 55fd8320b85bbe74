"""Gradient noise against populations of known mean and covariance, and against sums by hand."""

from collections.abc import Callable
from functools import cache
from itertools import permutations
from math import isinf

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradflow.examine.noise import Batch, NoiseScale, gradient_noise

D = 40  # dimensions of the synthetic gradient
K, B = 17, 5  # batches and images per batch, as on 886 images in batches of 50: K = 17


def mean_of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.mean()


def vector_model(d: int = D) -> nn.Module:
    """⟨w, x⟩: the gradient of its mean over a batch is the mean of the images themselves."""
    return nn.Linear(d, 1, bias=False).double()


def vector_batches(
    mu: Tensor, sigma: float, generator: torch.Generator, k: int = K, b: int = B
) -> list[Batch]:
    """Images g = μ + σ ξ with ξ ~ N(0, I): the covariance of one image has trace d σ²."""
    xi = torch.randn(k, b, len(mu), generator=generator, dtype=torch.float64)
    return [(x, torch.zeros(b)) for x in mu + sigma * xi]


def mu_of(square: float) -> Tensor:
    return torch.full((D,), (square / D) ** 0.5, dtype=torch.float64)


@cache  # two tests look at the same
def draws(square: float, n: int = 200) -> list[NoiseScale]:
    """Of ‖μ‖² = `square` and σ = 2."""
    generator, model = torch.Generator().manual_seed(0), vector_model()
    return [
        gradient_noise(model, vector_batches(mu_of(square), 2.0, generator), mean_of_logits)["all"]
        for _ in range(n)
    ]


def covered(truth: float, intervals: list[tuple[float, float]]) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


# -- C10: known mean and covariance --------------------------------------------------------------


@pytest.mark.parametrize("square", [0.5, 8.0])
def test_noise_scale_is_the_trace_over_the_square_of_the_mean(square: float) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = vector_batches(mu_of(square), 2.0, generator, k=600, b=20)
    got = gradient_noise(vector_model(), batches, mean_of_logits)["all"]
    assert got.noise == pytest.approx(D * 4, rel=0.03)
    assert got.noise_scale == pytest.approx(D * 4 / square, rel=0.05)
    low, high = got.noise_scale_interval
    assert low < D * 4 / square < high < 1.4 * low
    assert (got.n_batches, got.batch_size) == (600, 20)


def test_where_there_is_a_signal_its_interval_holds_it_in_95_percent_of_draws() -> None:
    found = draws(8.0)
    assert 0.91 <= covered(8.0, [x.signal_interval for x in found]) <= 0.985
    assert 0.91 <= covered(D * 4 / 8, [x.noise_scale_interval for x in found]) <= 0.985


def test_without_signal_the_interval_holds_0_and_the_noise_scale_is_infinite() -> None:
    """As often as promised or more, by the factor in the variance that the docstring gives."""
    found = draws(0.0)
    assert covered(0.0, [x.signal_interval for x in found]) >= 0.95
    assert np.mean([isinf(x.noise_scale) for x in found]) >= 0.95
    assert all(isinf(x.noise_scale_interval[1]) for x in found if x.signal_interval[0] <= 0)
    half = [(high - low) / 2 for low, high in (x.signal_interval for x in found)]
    jackknife = np.mean(np.square(half)) / student.ppf(0.975, K - 1) ** 2
    # Of products of two of K independent vectors with covariance (σ² / B) I.
    true = 2 * D * (4 / B) ** 2 / (K * (K - 1))
    assert np.var([x.signal for x in found]) == pytest.approx(true, rel=0.3)
    assert jackknife == pytest.approx(true * 2 * (K - 1) / (K - 2), rel=0.1)


# -- by hand -------------------------------------------------------------------------------------


def tanh_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def image_batches(k: int, b: int, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(k, b, 4, generator=generator, dtype=torch.float64)
    labels = images[:, :, :3].argmax(2)  # something to learn: else there were no signal
    return list(zip(images, labels, strict=True))


def grads_by_hand(model: nn.Module, batches: list[Batch]) -> dict[str, np.ndarray]:
    """(K, elements) of each parameter and of all, by plain backward passes in this order."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name, _ in model.named_parameters()}
    for images, labels in batches:
        model.zero_grad()
        torch.autograd.backward(cross_entropy(model(images), labels))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            rows[name].append(parameter.grad.flatten().clone().numpy())
    model.zero_grad()
    stacked = {name: np.stack(row) for name, row in rows.items()}
    return stacked | {"all": np.concatenate(list(stacked.values()), axis=1)}


def test_noise_is_the_trace_of_the_covariance_of_single_images() -> None:
    model, batches = tanh_net(), image_batches(k=30, b=1)
    got = gradient_noise(model, batches, cross_entropy)
    grads = grads_by_hand(model, batches)
    assert list(got) == list(grads)
    for name, g in grads.items():
        assert got[name].noise == pytest.approx(np.trace(np.cov(g.T)), rel=1e-10)


@pytest.mark.parametrize("mode", ["plain", "BatchNorm", "dropout"])
def test_signal_is_the_mean_product_of_two_batches(mode: str) -> None:
    model = tanh_net()
    if mode != "plain":
        layer = nn.BatchNorm1d(6) if mode == "BatchNorm" else nn.Dropout(0.5)
        model = nn.Sequential(*model[:1], layer, *model[1:]).double()  # type: ignore[index]
    batches = image_batches(k=6, b=4)
    torch.manual_seed(3)
    got = gradient_noise(model, batches, cross_entropy)
    for name, g in grads_by_hand(model, batches).items():  # from the same random numbers
        signal = np.mean([x @ y for x, y in permutations(g, 2)])
        size = np.mean(np.square(g).sum(1))
        assert got[name].signal == pytest.approx(signal, rel=1e-10, abs=1e-12 * size)
        assert got[name].noise == pytest.approx(4 * (size - signal), rel=1e-10, abs=1e-14)


def test_intervals_are_those_of_leaving_out_each_batch_in_turn() -> None:
    model, batches = tanh_net(), image_batches(k=8, b=16)
    got = gradient_noise(model, batches, cross_entropy)
    left_out = [
        gradient_noise(model, batches[:i] + batches[i + 1 :], cross_entropy) for i in range(8)
    ]
    t = student.ppf(0.975, 7)
    n_bounded = 0
    for name, whole in got.items():
        signals = np.array([row[name].signal for row in left_out])
        noises = np.array([row[name].noise for row in left_out])
        half = t * (7 / 8 * np.square(signals - signals.mean()).sum()) ** 0.5
        wanted = (whole.signal - half, whole.signal + half)
        assert whole.signal_interval == pytest.approx(wanted, rel=1e-9)
        for ratio in whole.noise_scale_interval:
            if isinf(ratio):
                assert wanted[0] <= 0
                continue
            # Fieller's ends: this ratio is just refuted.
            rest = noises - ratio * signals
            variance = 7 / 8 * np.square(rest - rest.mean()).sum()
            gap = abs(whole.noise - ratio * whole.signal)
            assert gap == pytest.approx(t * variance**0.5, rel=1e-6) or ratio == 0
        n_bounded += not isinf(whole.noise_scale)
    assert n_bounded, "this test has seen a finite interval"


# -- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batches: batches[:2], "Expected at least 3 batches, but got 2"),
        (
            lambda batches: [*batches, (batches[0][0][:2], batches[0][1][:2])],
            "Expected batches of one size, but got sizes 2, 5. Leave out the last",
        ),
    ],
)
def test_batches_that_do_not_fit(
    change: Callable[[list[Batch]], list[Batch]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_noise(tanh_net(), change(image_batches(k=4, b=5)), cross_entropy)


def test_frozen_parameters_have_no_gradients() -> None:
    model = tanh_net()
    model.get_parameter("0.weight").requires_grad_(False)
    batches = image_batches(k=4, b=5)
    assert list(gradient_noise(model, batches, cross_entropy)) == [
        "0.bias", "2.weight", "2.bias", "all",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="Expected a model with trainable parameters"):
        gradient_noise(model.requires_grad_(False), batches, cross_entropy)
