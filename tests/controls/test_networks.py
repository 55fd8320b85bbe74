"""Known networks: what their weights are, from the seed alone, and the same every time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradflow.controls import networks

BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "orthogonal": lambda seed: networks.orthogonal_linear(3, 8, 0.5, seed),
    "gaussian": lambda seed: networks.gaussian_linear(3, 8, seed),
    "relu": lambda seed: networks.relu_mlp(3, 8, 1.5, seed),
    "xavier": lambda seed: networks.sigmoid_mlp(3, 8, "xavier", seed),
    "torch-default": lambda seed: networks.sigmoid_mlp(3, 8, "torch-default", seed),
    "batchnorm": lambda seed: networks.batchnorm_mlp(3, 8, seed),
    "residual": lambda seed: networks.identity_residual(2, 8, seed),
    "plain-34": lambda seed: networks.plain_34_with_norm("kaiming", seed),
    "plain-34 without norm": lambda seed: networks.plain_34_without_norm("torch-default", seed),
}


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_follow_from_the_seed_and_leave_the_global_generator_alone(name: str) -> None:
    build = BUILDERS[name]
    before = torch.get_rng_state()
    first, again, other = weights(build(0)), weights(build(0)), weights(build(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()
    assert not torch.equal(first, other)


def test_pytorchs_default_is_the_one_of_pytorch() -> None:
    """The bounds, and that there is a bias, as nn.Linear makes it today."""
    (mine, *_), theirs = networks.sigmoid_mlp(1, 400, "torch-default", 0), nn.Linear(400, 400)
    assert isinstance(mine, nn.Linear)
    for one in (mine.weight, mine.bias, theirs.weight, theirs.bias):
        assert one.abs().max().item() == pytest.approx(0.05, rel=0.02)
        assert one.abs().max().item() <= 0.05
