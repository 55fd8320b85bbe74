"""Whatever is measured of a network, the network is afterwards what it was, to the last bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradflow.examine.activations import dead_channels
from gradflow.examine.batchnorm import recalibrated, with_batch_statistics
from gradflow.examine.initial import check
from gradflow.examine.noise import gradient_noise
from gradflow.examine.rank import features

IMAGES = torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(0))
BATCHES = [(images, torch.arange(5) % 3) for images in IMAGES]


def odd_net() -> nn.Sequential:
    """BatchNorm, dropout, a frozen layer, a part in eval mode, gradients that stand there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)
    )
    model[0].weight.requires_grad_(False)
    model[3].eval()
    model.get_buffer("1.num_batches_tracked").fill_(7)
    model[4].weight.grad = torch.ones(3, 6)
    return model


def everything_of(model: nn.Module) -> dict[str, object]:
    return {
        "state": {name: value.tolist() for name, value in model.state_dict().items()},
        "memory": [value.data_ptr() for value in model.state_dict().values()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "random numbers": torch.get_rng_state().tolist(),
    }


def noise_that_fails(model: nn.Module) -> None:
    calls: list[int] = []

    def failing(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append(len(logits))
        if len(calls) == 6:  # in the second pass
            raise RuntimeError("out of memory")
        return cross_entropy(logits, labels)

    with pytest.raises(RuntimeError, match="out of memory"):
        gradient_noise(model, BATCHES, failing)


@pytest.mark.parametrize(
    "measure",
    [
        lambda model: gradient_noise(model, BATCHES, cross_entropy),
        noise_that_fails,
        lambda model: dead_channels(model, IMAGES),
        lambda model: features(model, IMAGES),
        lambda model: recalibrated(model, IMAGES)(IMAGES[0]),
        lambda model: with_batch_statistics(model)(IMAGES[0]),
        lambda model: check(model, (4,), draws=2),
    ],
    ids=["noise", "noise that fails", "dead", "features", "recalibrated", "of the batch", "check"],
)
def test_a_network_stays_as_it_was(measure: Callable[[nn.Module], object]) -> None:
    model = odd_net()
    before = everything_of(model)
    measure(model)
    assert everything_of(model) == before
