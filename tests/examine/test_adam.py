"""What the size of a gradient does under AdamW and BatchNorm: nothing, and where that ends."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradflow import Recorder, Trace

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # PyTorch's defaults
NOISE_RMS = ((1 - BETA_1) / (1 + BETA_1)) ** 0.5  # of m̂ for independent gradients of rms 1


class Vector(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(size, dtype=torch.float64))


def train(grads: Sequence[Tensor], measures: Sequence[str]) -> tuple[Trace, Tensor]:
    """AdamW fed with these gradients: the last step's trace, and the weights after each step."""
    model = Vector(len(grads[0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    weights, last = [], len(grads) - 1
    with Recorder(model, optimizer, every=lambda step: step == last, measures=measures) as recorder:
        for grad in grads:
            model.w.grad = grad.clone()
            optimizer.step()
            weights.append(model.w.detach().clone())
    return recorder.trace, torch.stack(weights)


def measured(grads: Sequence[Tensor]) -> tuple[float, float]:
    """rms of m̂/(√v̂ + ε) and mean of √v̂/(√v̂ + ε), as recorded after the last step."""
    trace, _ = train(grads, ["adam_update_rms", "adam_attenuation"])
    values = trace.values
    return values["adam_update_rms"].item(), values["adam_attenuation"].item()


def by_hand(grads: Sequence[Tensor]) -> tuple[float, float]:
    """Kingma & Ba 2015, algorithm 1."""
    m = v = torch.zeros_like(grads[0])
    for grad in grads:
        m = BETA_1 * m + (1 - BETA_1) * grad
        v = BETA_2 * v + (1 - BETA_2) * grad**2
    m_hat = m / (1 - BETA_1 ** len(grads))
    root = (v / (1 - BETA_2 ** len(grads))).sqrt()
    update = m_hat / (root + EPSILON)
    return update.square().mean().sqrt().item(), (root / (root + EPSILON)).mean().item()


def noise(scale: float, n_steps: int = 500, size: int = 20_000) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        scale * torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(n_steps)
    ]


# -- C9: what Adam makes of noise, of signal, and of gradients as small as its ε -----------------


@pytest.mark.parametrize("rms", [1.0, 1e-7, 1e-8, 1e-9])
def test_noise_gives_steps_of_0_2294_until_epsilon_takes_its_part(rms: float) -> None:
    """√v̂ comes to the rms σ: a share σ/(σ + ε) is left, one half where σ = ε."""
    grads = noise(rms)
    left = rms / (rms + EPSILON)
    update_rms, attenuation = measured(grads)
    assert pytest.approx(0.2294, abs=1e-4) == NOISE_RMS
    assert update_rms == pytest.approx(NOISE_RMS * left, rel=0.02)
    assert attenuation == pytest.approx(left, rel=0.02)
    assert (update_rms, attenuation) == pytest.approx(by_hand(grads), rel=1e-5)


def test_a_constant_gradient_gives_full_steps() -> None:
    grads = [torch.tensor([3.0, -0.01, 500.0], dtype=torch.float64)] * 50
    assert measured(grads) == pytest.approx((1, 1), rel=0.02)
    assert measured(grads) == pytest.approx(by_hand(grads), rel=1e-6)


def test_a_constant_gradient_as_small_as_epsilon_gives_half_steps() -> None:
    grads = [torch.full((3,), EPSILON, dtype=torch.float64)] * 50
    assert measured(grads) == pytest.approx((0.5, 0.5), rel=1e-5)


# -- C8: scales that must not matter -------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0, 1e3])
def test_adamw_steps_do_not_depend_on_the_scale_of_the_gradient(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(10, 1000, generator=generator, dtype=torch.float64).sign()
    # Ten at least: scaled by 1e-3 that is still 10⁶ ε.
    grads = signs * (10 + 10 * torch.rand(10, 1000, generator=generator, dtype=torch.float64))
    _, usual = train(list(grads), ["update_norm"])
    trace, scaled = train(list(scale * grads), ["update_norm"])
    steps = torch.diff(usual, dim=0, prepend=torch.ones(1, 1000, dtype=torch.float64))
    assert ((scaled - usual).norm(dim=1) < 1e-5 * steps.norm(dim=1)).all()
    assert trace.values["update_norm"].item() == pytest.approx(steps[-1].norm().item(), rel=1e-5)
    # It ends where the scale brings the gradients near ε.
    _, tiny = train(list(1e-9 * grads), ["update_norm"])
    assert (tiny - usual)[0].norm() > 0.3 * steps[0].norm()


def norm_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 3),
    ).double()  # fmt: skip


def sizes(scale: float, change: Callable[[nn.Sequential], Tensor]) -> dict[str, float]:
    """Measures of the weight that `change` picks, after it was multiplied by `scale`."""
    model = norm_net()
    change(model).mul_(scale)
    generator = torch.Generator().manual_seed(1)
    images = 3 * torch.randn(16, 3, 6, 6, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    measures = ["grad_norm", "weight_norm", "filter_grad_size"]
    with Recorder(model, optimizer, measures=measures) as recorder:
        torch.autograd.backward(cross_entropy(model(images), torch.arange(16) % 3))
        optimizer.step()
    trace, picked = recorder.trace, change(model).data_ptr()
    [name] = [n for n, p in model.named_parameters() if p.data_ptr() == picked]
    row = {}
    for measure in (*measures, "scale_invariant_grad"):
        table = trace.select(measure)
        row[measure] = float(table.values[0, table.sites.index(name)])
    return row


def convolution(model: nn.Sequential) -> Tensor:
    return model.get_parameter("0.weight").data


def classifier(model: nn.Sequential) -> Tensor:
    return model.get_parameter("4.weight").data


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0, 100.0])
def test_before_batchnorm_the_scale_of_the_weight_does_not_matter(scale: float) -> None:
    """L(aW) = L(W), so g(aW) = g(W)/a: the gradient's norm alone says nothing."""
    usual, scaled = sizes(1.0, convolution), sizes(scale, convolution)
    for measure in ("scale_invariant_grad", "filter_grad_size"):
        assert scaled[measure] == pytest.approx(usual[measure], rel=1e-4)
    assert scaled["grad_norm"] == pytest.approx(usual["grad_norm"] / scale, rel=1e-4)
    assert scaled["weight_norm"] == pytest.approx(usual["weight_norm"] * scale, rel=1e-6)


def test_without_batchnorm_behind_it_the_scale_of_the_weight_matters() -> None:
    usual, scaled = sizes(1.0, classifier), sizes(10.0, classifier)
    assert not np.isclose(scaled["scale_invariant_grad"], usual["scale_invariant_grad"], rtol=0.5)
