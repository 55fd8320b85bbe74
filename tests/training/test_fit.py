"""One step of training, by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from gradflow.data import Batches, ImageStore
from gradflow.training.config import TrainConfig
from gradflow.training.fit import _scheduler, make_accelerator, start_training, train_steps
from gradflow.training.schedule import lr_factors


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_step_goes_down_the_smoothed_cross_entropy(smoothing: float) -> None:
    """Loss −Σ t log p with t = 1 − ε + ε/C at the label and ε/C elsewhere; dL/db = mean(p − t)."""
    images = torch.arange(3 * 3 * 4 * 4, dtype=torch.uint8).reshape(3, 3, 4, 4)
    labels = torch.tensor([0, 1, 1])
    store = ImageStore(images, labels, ("a", "b"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    bias = model[1].bias.detach().clone()
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.detach().double()))
    config = TrainConfig(label_smoothing=smoothing, optimizer="sgd", momentum=0.0, lr=0.5,
                         weight_decay=0.0, batch_size=3, device="cpu", schedule="constant",
                         channels_last=False)  # fmt: skip
    state = start_training(model, config, make_accelerator(config))
    losses = train_steps(state, Batches(store, np.arange(3), 3, shuffle=False))
    (logits,) = seen
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    t = torch.full((3, 2), smoothing / 2, dtype=torch.float64)
    t[torch.arange(3), labels] += 1 - smoothing
    assert losses.values == pytest.approx([-(t * p.log()).sum(1).mean().item()], rel=1e-5)
    expected = bias - 0.5 * (p - t).mean(0)
    torch.testing.assert_close(model[1].bias.detach().double(), expected, rtol=1e-5, atol=1e-7)


# -- learning rates by epoch -----------------------------------------------------------------------


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
