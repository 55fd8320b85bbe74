"""A word in time: each rule finds its planted fault, once, and is silent on the healthy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradflow
from gradflow.analysis.alarms import Alarms
from gradflow.record import Trace
from tests.analysis.traces import make_trace

HEALTHY = {"grad_norm": 0.1, "update_norm": 2e-3, "weight_norm": 2.0, "output_dead_window": 0.1}
NAMES = ("0", "2", "4")
N_STEPS = 40


def trace(**tables: object) -> Trace:
    return make_trace({**HEALTHY, **tables}, NAMES, n_steps=N_STEPS)  # type: ignore[arg-type]


def kinds(alarms: Alarms, *traces: Trace, lr: float | None = None) -> list[str]:
    return [one.kind for records in traces for one in alarms.records(records, lr)]


@pytest.mark.parametrize(
    ("kind", "tables", "says"),
    [
        ("not finite", {"grad_nonfinite": [0, 3, 0]}, "first at 2.bias, step 0"),
        ("no gradient", {"grad_norm": [0.0, 0.1, 0.1]}, "0.weight without any gradient for 10"),
        ("large updates", {"update_norm": [1e-3, 0.3, 1e-3]}, "2.weight by 0.15 of its size"),
        ("small updates", {"update_norm": [1e-3, 1e-3, 1e-6]}, "4.weight by 5e-07 of its size"),
        ("at epsilon", {"grad_norm": [1e-9, 0.1, 0.1]}, "rms 5e-10 (threshold 1e-08)"),
    ],
)
def test_each_fault_is_said_once_with_its_number(
    kind: str, tables: dict[str, object], says: str
) -> None:
    alarms = Alarms()
    (found,) = alarms.records(trace(**tables))
    assert found.kind == kind
    assert says in str(found)
    assert kinds(alarms, trace(**tables)) == []


def test_the_healthy_and_the_first_steps_of_a_training_are_left_alone() -> None:
    assert kinds(Alarms(), trace(), trace()) == []
    short = make_trace({**HEALTHY, "grad_norm": [0.0, 0.1, 0.1]}, NAMES, n_steps=15)
    assert kinds(Alarms(), short) == []


def test_a_gradient_that_is_missing_is_an_alarm_only_where_there_should_be_one() -> None:
    gone = trace(grad_norm=[np.nan, 0.1, 0.1])
    assert kinds(Alarms(), gone) == []  # frozen
    assert kinds(Alarms(trainable={"0.weight"}), gone) == ["no gradient"]


def test_small_updates_are_meant_once_the_learning_rate_has_fallen() -> None:
    alarms = Alarms()
    assert kinds(alarms, trace(), lr=1e-2) == []
    assert kinds(alarms, trace(update_norm=1e-7), lr=1e-5) == []
    assert kinds(alarms, trace(update_norm=1e-7), lr=1e-2) == ["small updates"]


def test_adams_epsilon_concerns_adam_alone() -> None:
    assert kinds(Alarms(eps=None), trace(grad_norm=1e-9)) == []


def test_a_loss_that_does_not_fall_is_said_after_four_epochs() -> None:
    stuck, falls = Alarms(), Alarms()
    assert [bool(stuck.epoch(loss)) for loss in (2.3, 2.3, 2.31, 2.29, 2.3)] == [0, 0, 0, 1, 0]
    assert not any(falls.epoch(loss) for loss in (2.3, 2.31, 2.2, 2.25, 2.3))
    assert not Alarms(losses=(2.3, 1.0, 0.9)).epoch(0.9)


# -- networks in training ------------------------------------------------------------------------


def said(
    build: Callable[[], nn.Module],
    capsys: pytest.CaptureFixture[str],
    lr: float = 1e-3,
    n_steps: int = 200,
    **options: bool,
) -> str:
    torch.manual_seed(0)
    model, images = build(), torch.randn(256, 3, 8, 8)
    labels = images.mean(dim=(1, 2, 3)).gt(0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    with gradflow.watch(model, optimizer, **options):
        for step in range(n_steps):
            batch = torch.arange(32 * step, 32 * (step + 1)) % 256
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return capsys.readouterr().err


def convolutions(activation: type[nn.Module] = nn.ReLU, *, norm: bool = True) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (3, 8, 8, 8):
        layers += [nn.Conv2d(width, 8, 3, padding=1)]
        layers += [nn.BatchNorm2d(8)] if norm else []
        layers += [activation()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    "build",
    [
        convolutions,
        lambda: convolutions(nn.Tanh),
        lambda: convolutions(norm=False),
        lambda: gradflow.resnet_18(2, width=0.125, stem="small"),
    ],
    ids=["bn", "tanh", "without norm", "resnet_18"],
)
@pytest.mark.slow
def test_healthy_networks_hear_nothing(
    build: Callable[[], nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(build, capsys) == ""


def dead() -> nn.Module:
    model = convolutions(norm=False)
    nn.init.constant_(model[2].bias, -100.0)  # type: ignore[index, arg-type]
    return model


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = F.relu(self.first(images.flatten(1))).detach()
        found: torch.Tensor = self.third(F.relu(self.second(features)))
        return found


def deep_sigmoid() -> nn.Module:
    layers = [layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), *layers, nn.Linear(16, 2))


@pytest.mark.parametrize(
    ("build", "lr", "says"),
    [
        (dead, 1e-3, "100% of the channels of 3 are off"),
        (Detached, 1e-3, "first.weight without any gradient"),
        (deep_sigmoid, 1e-3, "as small as Adam's ε"),
        (convolutions, 1.0, "A step changes"),
    ],
    ids=["dead", "detached", "sigmoid", "rate"],
)
@pytest.mark.slow
def test_planted_faults_are_named(
    build: Callable[[], nn.Module], lr: float, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in said(build, capsys, lr)
    assert said(build, capsys, lr, alarms=False) == ""
