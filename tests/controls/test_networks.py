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


def matrices(model: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]


def test_orthogonal_weights_keep_lengths_but_for_the_gain() -> None:
    for weight in matrices(networks.orthogonal_linear(4, 16, 1.5, seed=0)):
        torch.testing.assert_close(weight.T @ weight, 1.5**2 * torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize(
    ("model", "variance"),
    [
        (networks.gaussian_linear(4, 256, 0), 1 / 256),
        (networks.relu_mlp(4, 256, 1.0, 0), 2 / 256),
        (networks.relu_mlp(4, 256, 0.5, 0), 0.5 / 256),
        (networks.sigmoid_mlp(4, 256, "xavier", 0), 1 / 256),
        (networks.sigmoid_mlp(4, 256, "torch-default", 0), 1 / (3 * 256)),
        (networks.batchnorm_mlp(4, 256, 0), 1 / 256),
    ],
)
def test_variance_of_the_weights(model: nn.Module, variance: float) -> None:
    for weight in matrices(model):  # 65 536 numbers: ± 0.6 %
        assert weight.var().item() == pytest.approx(variance, rel=0.03)
        assert weight.mean().abs().item() < 4 * (variance / weight.numel()) ** 0.5


def test_pytorchs_default_is_the_one_of_pytorch() -> None:
    """The bounds, and that there is a bias, as nn.Linear makes it today."""
    (mine, *_), theirs = networks.sigmoid_mlp(1, 400, "torch-default", 0), nn.Linear(400, 400)
    assert isinstance(mine, nn.Linear)
    for one in (mine.weight, mine.bias, theirs.weight, theirs.bias):
        assert one.abs().max().item() == pytest.approx(0.05, rel=0.02)
        assert one.abs().max().item() <= 0.05


def test_residual_blocks_begin_as_the_identity() -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, *blocks, _ = networks.identity_residual(3, 8, seed=0)
    start = first(x)
    assert torch.equal(nn.Sequential(*blocks)(start), start)
