"""Learning rates by epoch: the closed form is that of PyTorch's schedulers; sums are equal."""

from typing import Any

import pytest
import torch
from torch.optim import SGD

from gradflow.training.config import TrainConfig
from gradflow.training.fit import _scheduler
from gradflow.training.schedule import lr_factors


def rates(config: TrainConfig) -> list[float]:
    """As a training of so many epochs meets them."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], config.lr)
    scheduler, found = _scheduler(optimizer, config), []
    for _ in range(config.epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_closed_form_is_that_of_pytorch(schedule: Any) -> None:
    config = TrainConfig(epochs=23, schedule=schedule, step_size=4, gamma=0.3)
    expected = [config.lr * factor for factor in lr_factors(config)]
    assert rates(config) == pytest.approx(expected, rel=1e-12)


def test_warm_up_rises_in_equal_steps_and_then_the_schedule_begins() -> None:
    config = TrainConfig(epochs=7, warmup=3, step_size=2, lr=1.0)
    assert rates(config) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.1, 0.1])


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedules_of_equal_sum(schedule: Any, warmup: int) -> None:
    """Σ of the step schedule: step_size · lr · (1 − γᵏ) / (1 − γ) over k drops."""
    config = TrainConfig(
        epochs=20, schedule=schedule, warmup=warmup, lr_sum="step", step_size=5, gamma=0.1, lr=0.3
    )
    assert sum(rates(config)) == pytest.approx(5 * 0.3 * (1 - 0.1**4) / (1 - 0.1), rel=1e-12)


def test_a_warm_up_as_long_as_the_training_is_refused() -> None:
    with pytest.raises(ValueError, match="`warmup` to be 0 or more, and less than `epochs`"):
        TrainConfig(epochs=3, warmup=3)
