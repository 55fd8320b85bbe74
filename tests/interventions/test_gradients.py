"""Gradient interventions by closed form: SGD's and AdamW's first steps, recorded profiles."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradflow import Recorder
from gradflow.interventions import Applied, Freeze, GradientScale, Intervention, Transplant

IMAGES = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


def network() -> nn.Sequential:
    """Three layers on the path; the second has a norm that belongs to it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5),
            nn.ReLU(), nn.Flatten(), nn.Linear(20, 3),
        )  # fmt: skip


def train(
    *interventions: Intervention, n_steps: int = 1, lr: float = 0.1, adam: bool = False,
    folder: Path | None = None,
    weight: float = 1.0,
) -> tuple[list[dict[str, Tensor]], Applied, Recorder]:  # fmt: skip
    """The weights before each step and after the last."""
    model = network()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr, weight_decay=0.01)
    if adam:
        optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01, fused=True)
    steps = [0]
    applied = Applied(interventions, "net", 3)
    applied.attach(model, optimizer, lambda: steps[0])
    weights = [{name: p.detach().clone() for name, p in model.named_parameters()}]
    with Recorder(model, optimizer, folder=folder) as recorder:
        for _ in range(n_steps):
            optimizer.zero_grad()
            cross_entropy(model(IMAGES), LABELS, reduction="sum").mul(weight).backward()
            optimizer.step()
            steps[0] += 1
            weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    applied.detach()
    return weights, applied, recorder


def test_under_sgd_the_first_update_is_multiplied_by_the_factor() -> None:
    """Δw + lr·decay·w = −lr c g: the part of the gradient, for c = ¼, exact in binary."""
    (before, plain), _, _ = train()
    (_, scaled), _, _ = train(GradientScale("2", 0.25))
    for name in before:
        decay = 0.1 * 0.01 * before[name]
        update, expected = scaled[name] - before[name] + decay, plain[name] - before[name] + decay
        factor = 0.25 if name.startswith(("2.", "3.")) else 1.0  # the norm goes with its layer
        torch.testing.assert_close(update, factor * expected, rtol=0, atol=1e-7)
        assert name.startswith(("2.", "3.")) or torch.equal(scaled[name], plain[name])


@pytest.mark.parametrize("factor", [1e-3, 1e-1, 10.0, 1e3])
def test_adamw_does_not_mind_the_factor(factor: float) -> None:
    """Control C8: weights after ten steps to 1e-5 of their size, as long as c · g is above eps.

    The loss is times 1000, so that c · g is above eps = 1e-8 for the smaller elements too.
    """
    plain, _, _ = train(n_steps=10, lr=1e-3, adam=True, weight=1e3)
    scale = GradientScale("1-2", factor)
    scaled, _, _ = train(scale, n_steps=10, lr=1e-3, adam=True, weight=1e3)
    for name in ("0.weight", "2.weight"):
        assert (plain[-1][name] - plain[0][name]).norm() > 1e-2 * plain[0][name].norm()
        assert (scaled[-1][name] - plain[-1][name]).norm() < 1e-5 * plain[-1][name].norm()


def test_adamw_minds_a_factor_that_takes_gradients_to_its_eps() -> None:
    """Its first step is −lr c g / (|c g| + ε), ε = 1e-8, after the decay of the weights."""
    (before, sgd), _, _ = train(lr=1.0)
    grad = (before["0.weight"] - sgd["0.weight"] - 0.01 * before["0.weight"]).double()
    factor = 1e-8
    (_, after), _, _ = train(GradientScale("1", factor), lr=1e-3, adam=True)
    update = (after["0.weight"] - before["0.weight"] * (1 - 1e-3 * 0.01)).double()
    expected = -1e-3 * factor * grad / ((factor * grad).abs() + 1e-8)
    torch.testing.assert_close(update, expected, rtol=1e-3, atol=1e-7)
    assert expected.abs().median() < 0.9e-3


def test_recorder_sees_gradients_as_the_optimizer_receives_them() -> None:
    _, _, plain = train()
    _, _, scaled = train(GradientScale("1", 0.5))
    sites = plain.trace.select("grad_norm").sites
    expected = plain.trace.select("grad_norm").values[0] * [
        0.5 if site.startswith("0.") else 1.0 for site in sites
    ]
    np.testing.assert_allclose(scaled.trace.select("grad_norm").values[0], expected, rtol=1e-6)
    outputs = [r.trace.select("output_grad_norm").values for r in (plain, scaled)]
    np.testing.assert_array_equal(*outputs)


def test_the_check_tells_the_factor_and_finds_one_that_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, applied, _ = train(GradientScale("1-2", 0.01), n_steps=3)
    ratio, error = applied._changes[0][1].checks()
    assert ratio.by_layer == {"0": pytest.approx(0.01), "2": pytest.approx(0.01)}
    assert (ratio.passed, error.passed) == (True, True)
    monkeypatch.setattr(Tensor, "mul_", lambda self, other: self)
    _, applied, _ = train(GradientScale("1-2", 0.01))
    ratio, error = applied._changes[0][1].checks()
    assert (ratio.measured, ratio.passed, error.passed) == (1.0, False, False)


def test_a_transplanted_profile_is_what_is_recorded(tmp_path: Path) -> None:
    """Another run's ŝ, step by step: it trained with gradients of layer 1 ten times smaller."""
    _, _, other = train(GradientScale("1", 0.1), n_steps=3, folder=tmp_path / "other")
    _, applied, recorder = train(Transplant(str(tmp_path / "other"), layers="1-2"), n_steps=3)
    sites = ["0.weight", "2.weight"]
    tables = [r.trace.select("scale_invariant_grad") for r in (other, recorder)]
    values = [t.values[:, [t.sites.index(site) for site in sites]] for t in tables]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    ratio, error = applied._changes[0][1].checks()
    assert error.passed
    assert ratio.by_layer["0"] < 0.2


def test_steps_without_records_take_the_last_ones_before(tmp_path: Path) -> None:
    _, _, other = train(n_steps=2, folder=tmp_path / "other")
    change = Transplant(str(tmp_path / "other"), layers="1").gradient_change(network(), "net", 0)
    factors = change._factors  # type: ignore[attr-defined]
    norm = torch.tensor([1.0], dtype=torch.float64)
    assert factors(0, norm) != factors(1, norm)
    assert factors(1, norm) == factors(100, norm)


@pytest.mark.parametrize("adam", [False, True])
def test_frozen_layers_keep_every_bit_in_spite_of_weight_decay(adam: bool) -> None:
    weights, _, recorder = train(Freeze("1-2"), n_steps=3, adam=adam)
    for name, first in weights[0].items():
        assert torch.equal(first, weights[-1][name]) == name.startswith(("0.", "2.", "3."))
    trace = recorder.trace
    frozen = trace.select("grad_norm").sites
    assert "0.weight" not in frozen
    assert "6.weight" in frozen
    assert "0" in trace.select("output_grad_norm").sites, "gradients still pass through"


def test_a_loss_scale_does_not_change_what_is_transplanted(tmp_path: Path) -> None:
    train(folder=tmp_path / "net")
    norms = []
    for scale in (None, torch.tensor(1024.0)):
        model = network()
        cross_entropy(model(IMAGES), LABELS).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(3 * (1.0 if scale is None else scale))
        change = Transplant(str(tmp_path / "net")).gradient_change(model, "net", 0)
        change.before_step(0, scale)
        grad = model.get_parameter("0.weight").grad
        assert grad is not None
        norms.append(float(grad.norm() / (1.0 if scale is None else scale)))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
