"""The state at the start of networks of every shape: which layers are asked, what is told."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gradflow
from gradflow.examine.initial import check
from gradflow.examine.passes import FUNCTIONAL
from tests.examine.stacks import mlp, orthogonal


def test_towers_are_asked_apart() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor = mlp(nn.Tanh, depth=3, width=16)
            self.critic = mlp(nn.Sigmoid, depth=12, width=16)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.actor(x), self.critic(x)

    found = check(Two, (16,), draws=2)
    assert [path.layers[0] for path in found.paths] == ["critic.0", "actor.0"]
    assert [path.typical.outlook for path in found.paths] == ["unlikely to train", "ordinary"]
    assert found.layers[0] == "critic.0"
    assert "the worst of 2 paths" in str(found)


class Cut(nn.Module):
    """Two parts of three layers; what lies between, and a head, is up to the case."""

    def __init__(self, between: Callable[[Tensor], Tensor], *, two_heads: bool = False) -> None:
        super().__init__()
        self.first, self.second = (mlp(nn.Tanh, depth=3, width=16) for _ in range(2))
        self.first[-1] = nn.Linear(16, 16)
        self.other = mlp(nn.Tanh, depth=4, width=16)
        self.between, self.two_heads = between, two_heads

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        middle = self.between(self.first(x))
        other = self.other(middle)
        outputs = {"logits": self.second(middle)}
        return {**outputs, "other": other} if self.two_heads else outputs


def test_what_no_loss_depends_on_is_said_and_not_asked_about() -> None:
    detached = check(lambda: Cut(Tensor.detach), (16,), draws=1)
    assert detached.layers == ("second.0", "second.2", "second.4")
    assert {"first.0", "first.6", "other.0", "other.8"} <= set(detached.unreached)
    assert "No loss depends on first.0, first.2, first.4 and" in str(detached)
    used = check(lambda: Cut(lambda x: x), (16,), draws=1)
    assert used.layers[-1] == "second.4", "the head without a loss is deeper"
    assert set(used.unreached) == {"other.0", "other.2", "other.4", "other.6", "other.8"}
    both = check(lambda: Cut(lambda x: x, two_heads=True), (16,), draws=1)
    assert both.layers[-1] == "other.6", "every tensor of a dict has a loss"
    assert both.unreached == ()


class TwoInputs(nn.Module):
    ages: nn.Module
    images: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.images, self.ages = nn.Linear(8, 16), nn.Linear(2, 16)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, images: Tensor, ages: Tensor) -> Tensor:
        logits: Tensor = self.head(self.images(images) + self.ages(ages))
        return logits


def test_a_dead_branch_beside_the_path_is_named() -> None:
    model = TwoInputs()
    model.ages = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16))
    model.images = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    nn.init.constant_(model.ages[0].bias, -100.0)
    found = check(model, [(8,), (2,)], draws=1)
    assert found.layers[0] == "images.0"
    assert found.without_gradient == ("ages.0",)


def test_several_inputs_and_a_factory_that_brings_them() -> None:
    assert check(TwoInputs, [(8,), (2,)], draws=1).label == "ordinary"
    inputs = torch.randn(4, 8), torch.randn(4, 2)
    assert check(lambda: (TwoInputs(), inputs), draws=1).input_shape == (4, 8)
    named = {"ages": inputs[1], "images": inputs[0]}
    assert check(lambda: (TwoInputs(), named), draws=1).label == "ordinary"
    with pytest.raises(ValueError, match="does not accept input of shape 8 in batches of 8"):
        check(TwoInputs, (8,))
    with pytest.raises(ValueError, match="function that returns the network and its inputs"):
        check(TwoInputs)


def test_token_models_are_checked_with_a_tensor() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 8)
            self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, ids: Tensor) -> dict[str, Tensor]:
            return {"ids": ids, "features": self.body(self.embedding(ids))}

    found = gradflow.check(Reader, torch.randint(50, (4, 6)), draws=2)
    assert found.loss == FUNCTIONAL
    assert found.input_shape == (4, 6)
    assert found.drawn == "weights and loss"
    with pytest.raises(ValueError, match=r"nn.Embedding.*`gradflow.check\(model, ids\)`"):
        check(Reader, (6,))


# -- odd networks -----------------------------------------------------------------------------


class ReZero(nn.Module):
    """x + 0 · f(x): Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(16, 16), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.relu(self.layer(x))


class Functional(nn.Module):
    """All layers in one forward, without modules; the layer `dead` lets nothing through."""

    def __init__(self, dead: int | None = None) -> None:
        super().__init__()
        self.w = nn.ParameterList([torch.randn(16, 16) / 4 for _ in range(8)])
        self.head = nn.Linear(16, 3)
        self.dead = dead

    def forward(self, x: Tensor) -> Tensor:
        for i, w in enumerate(self.w):
            x = torch.tanh(x @ w)
            x = torch.relu(x - 2) if i == self.dead else x
        logits: Tensor = self.head(x)
        return logits


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        logits: Tensor = self.head(h)
        return logits


def rezero() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), *(ReZero() for _ in range(6)), nn.Linear(16, 4))


def tiny_first() -> nn.Module:
    """Every input gets the same output, and δ falls by a little in all layers."""
    model = orthogonal(0.9, depth=6)()
    nn.init.normal_(model.get_parameter("0.weight"), std=1e-9)
    return nn.Sequential(model, nn.Linear(16, 4).double())


def complex_layers() -> nn.Module:
    return nn.Sequential(*(nn.Linear(8, 8, dtype=torch.complex64) for _ in range(3)))


def lazy_layers() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3))


@pytest.mark.parametrize(
    ("make", "input", "label", "said", "not_said"),
    [
        (rezero, (16,), "ordinary", "they learn later where a branch starts at zero", "one module"),
        (rezero, (16,), "ordinary", "at 1.layer, 2.layer, 3.layer and 3 more layers", "No loss"),
        # A fall is told only where it is why.
        (tiny_first, (16,), "doubtful: vanishing", "Every input", "largest single fall"),
        (complex_layers, (8,), "ordinary", "δ at the first of 2 layers", "NaN"),
        (lazy_layers, (4,), "ordinary", "δ at the first of 2 layers", "NaN"),
        # The outputs of layers inside of one module are not seen.
        (lambda: nn.Sequential(nn.LSTM(8, 16, num_layers=3)), (5, 8), "unknown",
         "run inside one module", "No gradient"),
        (lambda: nn.LSTM(8, 16, num_layers=3), (5, 8), "unknown",
         "acts from one time step to the next: weight_hh_l0", "No gradient"),
        (Functional, (16,), "unknown", "ŝ at the first is", "No gradient"),
        # No later one has an input.
        (lambda: Functional(dead=4), (16,), "unlikely to train: vanishing from w.7 on",
         "No gradient at all reaches 8 of the 8 layers", "one module"),
        (Loop, (40, 4), "doubtful: vanishing", "for tasks that need the first time step", "ŝ at"),
        (Loop, (40, 4), "doubtful: vanishing", "39 of 42 layers are later calls of others", "ŝ at"),
        (lambda: mlp(nn.Sigmoid, depth=12, width=16), (16,), "unlikely to train: vanishing",
         "A single draw gives no interval", "first time step"),
    ],
)  # fmt: skip
def test_odd_networks_are_called_what_they_are_and_told_why(
    make: Callable[[], nn.Module], input: tuple[int, ...], label: str, said: str, not_said: str
) -> None:
    found = check(make, input, draws=1)
    assert found.label.startswith(label)
    assert said in str(found)
    assert not_said not in str(found)
    assert math.isnan(found.profiles["output_gradient"].change.low)
    assert not found.is_certain
