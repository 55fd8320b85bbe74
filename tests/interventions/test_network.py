"""Interventions on networks: equal to the last bit where they should be, closed forms elsewhere."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradflow
from gradflow.analysis.rates import Rate
from gradflow.controls import (
    expected_growth_bn_bias,
    expected_growth_bn_leaky,
)
from gradflow.controls.networks import batchnorm_mlp, plain_34_without_norm
from gradflow.controls.truths import WITHOUT_NORM
from gradflow.examine.initial import check
from gradflow.interventions import CheckInputs, parse
from gradflow.nets import NETWORKS, ResNet

IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 3


def build(arch: str, text: str = "", images: Tensor = IMAGES, **kwargs: Any) -> ResNet:
    model = NETWORKS[arch](3, **{"stem": "small", "seed": 0, "width": 0.25} | kwargs)
    for intervention in parse(text):
        intervention.change_network(model)
        intervention.change_start(model, images)
    return model


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Weights, outputs and gradients, to the last bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    outputs = [model(IMAGES) for model in (one, other)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.logsumexp(1).sum().backward()
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(a.grad is not None and torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_skip_strength_leads_from_the_plain_to_the_residual_network(shortcut: str) -> None:
    assert_same(build("resnet_18", "skip(alpha=0)", shortcut=shortcut), build("plain_18"))
    residual = build("resnet_18", shortcut=shortcut)
    assert_same(build("resnet_18", "skip(alpha=1)", shortcut=shortcut), residual)
    with torch.no_grad():
        logits = [
            build("resnet_18", f"skip(alpha={alpha})", shortcut=shortcut)(IMAGES)
            for alpha in (0.25, 0.5, 1)
        ]
    assert not torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[1], logits[2])


def test_a_block_adds_alpha_times_its_input() -> None:
    """With a branch of zeros a block gives relu(α x) = α x of x ≥ 0."""
    block = build("resnet_18", "skip(alpha=0.25)", shortcut="A").layer1[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 4, 4)
    assert torch.equal(block(x), 0.25 * x)


@pytest.mark.parametrize(("scale", "passed"), [(1.0, True), (-2.4, True), (2.6, False)])
def test_a_projection_whose_norm_undoes_the_strength_fails_its_check(
    scale: float, passed: bool
) -> None:
    """0.25 · 2.6 is nearer to 1 than to 0.25."""
    model = build("resnet_18", "skip(alpha=0.25)", shortcut="B")
    nn.init.constant_(model.layer3[0].downsample[1].weight, scale)
    (undone,) = (
        one for one in parse("skip(alpha=0.25)")[0].checks(evidence(model)) if "|γ|" in one.what
    )
    assert undone.measured == pytest.approx(0.25 * max(1, abs(scale)))
    assert undone.passed is passed


def test_skip_strength_refuses_plain_networks() -> None:
    with pytest.raises(ValueError, match="Expected a residual network"):
        build("plain_18", "skip(alpha=0.5)")


def test_biases_of_the_chosen_norms_start_at_beta() -> None:
    model = build("resnet_18", "norm_bias(beta=0.5, layers=1-7)")
    moved = {n for n, p in model.named_parameters() if n.endswith("bias") and (p == 0.5).all()}
    path = ["bn1", *(f"layer{i}.{j}.bn{k}" for i, j in ((1, 0), (1, 1), (2, 0)) for k in (1, 2))]
    assert moved == {f"{name}.bias" for name in path}, "and not those of projections"
    with pytest.raises(ValueError, match="Expected BatchNorm in layers all"):
        build("plain_18", "norm_free(); norm_bias(beta=1)")


def test_every_relu_becomes_leaky() -> None:
    model = build("plain_18", "leaky(slope=0.2)")
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(nn.ReLU), kinds.count(nn.LeakyReLU)) == (0, 17)
    assert model.relu(torch.tensor([-1.0, 2.0])).tolist() == pytest.approx([-0.2, 2.0])


def with_bias(beta: float) -> nn.Sequential:
    model = batchnorm_mlp(14, 256, 0)
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.bias, beta)
    return model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        *((partial(with_bias, beta), expected_growth_bn_bias(beta)) for beta in (0, 0.5, 1, 2)),
        *(
            (
                partial(batchnorm_mlp, 14, 256, 0, partial(nn.LeakyReLU, slope)),
                expected_growth_bn_leaky(slope),
            )
            for slope in (0.2, 0.5)
        ),
    ],
)
def test_growth_is_that_of_the_closed_form(
    make: Callable[[], nn.Sequential], expected: float
) -> None:
    """A wide MLP, measured by the instrument; the formula is for an infinite batch."""
    images = torch.randn(256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = check(make(), images, draws=1)
    assert found.profiles["output_gradient"].rate.growth == pytest.approx(expected, rel=0.04)


def test_norm_free_network_has_biases_and_the_variance_2_over_fan_in() -> None:
    model = build("plain_18", "norm_free()")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            assert torch.equal(module.bias, torch.zeros(module.out_channels))
            square = module.weight.detach().double().square().mean()
            assert float(square) == pytest.approx(2 / module.weight[0].numel(), rel=1e-5)


@pytest.mark.parametrize("init", ["kaiming", "torch-default"])
def test_norm_free_network_grows_as_mean_field_theory_says(init: str) -> None:
    """Whatever was drawn: var w = 2 / fan-in, six times that of PyTorch's default."""
    model = build("plain_34", "norm_free()", stem="photo", init=init, width=1)
    found = check(model, (3, 64, 64), draws=1, batch_size=4).profiles["output_gradient"]
    behind_stem = Rate(found.median[1:])
    expected = 6 * WITHOUT_NORM["torch-default"]
    assert behind_stem.growth == pytest.approx(expected, rel=0.05)


def test_norm_free_that_keeps_the_weights_is_the_control_that_vanishes() -> None:
    model = build("plain_34", "norm_free(init=keep)", stem="photo", init="torch-default", width=1)
    known = plain_34_without_norm("torch-default", 0, 3)
    with torch.no_grad():
        images = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(model(images), known(images), rtol=0, atol=1e-7)
    assert check(model, (3, 64, 64), draws=1, batch_size=2).cause == "vanishing"


def evidence(model: nn.Module) -> CheckInputs:
    nothing = torch.zeros(1, dtype=torch.int64)
    return CheckInputs(model, model, model, IMAGES, LABELS, nothing, nothing, 1, 1.0)


@pytest.mark.parametrize("gain", [1.0, 2.0**0.5])
def test_delta_orthogonal_taps_are_orthogonal(gain: float) -> None:
    model = build("plain_18", f"delta_orthogonal(gain={gain}, layers=1-8)")
    square = model.layer1[0].conv1.weight.detach().double()
    tap = square[:, :, 1, 1]
    torch.testing.assert_close(tap @ tap.T, gain**2 * torch.eye(16).double(), rtol=0, atol=1e-6)
    assert float(square.square().sum()) == pytest.approx(16 * gain**2), "all else is 0"
    wide = model.layer2[0].conv1.weight.detach()[:, :, 1, 1].double()  # (32, 16)
    torch.testing.assert_close(wide.T @ wide, gain**2 * torch.eye(16).double(), rtol=0, atol=1e-6)
    assert torch.equal(model.layer4[0].conv1.weight, build("plain_18").layer4[0].conv1.weight)


def test_delta_orthogonal_start_is_the_same_in_both_networks() -> None:
    plain, residual = (build(arch, "delta_orthogonal()") for arch in ("plain_18", "resnet_18"))
    assert torch.equal(plain.layer3[0].conv2.weight, residual.layer3[0].conv2.weight)


@pytest.mark.parametrize("first", ["", "norm_free(); ", "delta_orthogonal(); "])
def test_lsuv_gives_every_layer_unit_variance_on_the_first_batch(first: str) -> None:
    before = build("plain_18", first)
    model = build("plain_18", f"{first}lsuv()")
    buffers = [dict(m.named_buffers()) for m in (before, model)]
    assert all(torch.equal(buffers[0][name], buffers[1][name]) for name in buffers[0])
    assert not any(module._forward_hooks for module in model.modules())
    variances = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda m, args, out, name=name: variances.update({name: float(out.detach().var())})
            )
    model(IMAGES)
    assert len(variances) == 17
    assert list(variances.values()) == pytest.approx([1.0] * 17, rel=2e-3)


@pytest.mark.parametrize(
    "text",
    [
        "norm_bias(beta=0.5)", "norm_bias(beta=1)", "leaky(slope=0.2)",
        "leaky(slope=0.5)", "norm_free()", "delta_orthogonal()", "lsuv()",
        "delta_orthogonal(); lsuv()", "leaky(slope=0.2); norm_bias(beta=1)",
    ],
)  # fmt: skip
def test_checks_pass_after_the_change_and_fail_without_it(text: str) -> None:
    interventions = parse(text)
    width = 1.0 if "delta" in text else 0.25  # of few channels the growth scatters
    changed, unchanged = (build("plain_18", one, width=width) for one in (text, ""))
    for intervention in interventions:
        assert all(one.passed is not False for one in intervention.checks(evidence(changed)))
        assert any(one.passed is False for one in intervention.checks(evidence(unchanged)))


def test_a_bias_of_some_layers_or_of_a_residual_network_is_checked_itself() -> None:
    for arch, text in (("plain_18", "norm_bias(beta=1, layers=1-9)"),
                       ("resnet_18", "norm_bias(beta=0.5)")):  # fmt: skip
        (intervention,) = parse(text)
        bias, growth = intervention.checks(evidence(build(arch, text)))
        assert (bias.passed, growth.passed) == (True, None)
        assert intervention.checks(evidence(build(arch)))[0].passed is False


def test_two_doses_at_once_have_no_predicted_growth() -> None:
    model = build("plain_18", "leaky(slope=0.5); norm_bias(beta=2)")
    for intervention in parse("leaky(slope=0.5); norm_bias(beta=2)"):
        assert intervention.checks(evidence(model))[-1].expected is None


@pytest.mark.parametrize("text", ["delta_orthogonal()", "lsuv()"])
def test_under_batchnorm_first_weights_may_not_change_the_growth(text: str) -> None:
    (intervention,) = parse(text)
    growth = intervention.checks(evidence(build("plain_18", text, width=1.0)))[-1]
    assert growth.expected == pytest.approx(np.pi / (np.pi - 1))
    assert growth.passed
    free = intervention.checks(evidence(build("plain_18", f"norm_free(); {text}")))[-1]
    assert free.expected is None


def test_a_start_without_variance_is_refused() -> None:
    model = gradflow.plain_18(3, stem="small", seed=0)
    (lsuv,) = parse("lsuv()")
    with pytest.raises(ValueError, match="Expected finite outputs with a spread"):
        lsuv.change_start(model, torch.zeros(4, 3, 8, 8))
