"""One step of training, by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradflow.data import Batches, ImageStore
from gradflow.training.config import TrainConfig
from gradflow.training.fit import make_accelerator, start_training, train_steps


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
