"""Linearity against quadratic losses, whose closed form is known, and against steps by hand."""

import json
from copy import deepcopy
from math import isnan

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradflow.examine.linearity import Linearity, gradient_predictiveness, linearity
from gradflow.examine.noise import Batch


class Bowl(nn.Module):
    """½ Σ λ w² + coupling · a·b of two vectors a and b, whose eigenvalues are λ_a and λ_b."""

    def __init__(self, lambda_a: float, lambda_b: float, coupling: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.5, 3.0], dtype=torch.float64))
        self.lambda_a, self.lambda_b, self.coupling = lambda_a, lambda_b, coupling

    def forward(self, x: Tensor) -> Tensor:
        bowls = self.lambda_a * self.a.square().sum() + self.lambda_b * self.b.square().sum()
        value: Tensor = bowls / 2 + self.coupling * self.a @ self.b
        return value + 0 * x


def value_of(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.mean()


NOTHING: Batch = (torch.zeros(1, dtype=torch.float64), torch.zeros(1))


def after_descent(model: Bowl, lr: float) -> dict[str, Tensor]:
    """W − lr · g, with the gradient written out."""
    a, b = model.a.detach(), model.b.detach()
    grad_a = model.lambda_a * a + model.coupling * b
    grad_b = model.lambda_b * b + model.coupling * a
    return {"a": a - lr * grad_a, "b": b - lr * grad_b}


@pytest.mark.parametrize("lr", [1e-4, 0.1, 1.0, 2.0, 3.0])
def test_on_a_quadratic_the_ratio_is_1_minus_half_of_the_rate_times_the_curvature(
    lr: float,
) -> None:
    """Up to lr = 2/λ, where the step lands at the same height; beyond that it does harm."""
    model = Bowl(1.0, 1.0)
    got = linearity(model, after_descent(model, lr), NOTHING, value_of, {})["all"]
    assert got.ratio == pytest.approx(1 - lr / 2, rel=1e-9, abs=1e-12)
    assert got.promised == pytest.approx(-lr * (1 + 4 + 0.25 + 9))


def test_a_group_moves_alone() -> None:
    model = Bowl(2.0, 0.5)
    groups = {"first": ["a"], "second": ["b"], "both": ["a", "b"], "none": []}
    got = linearity(model, after_descent(model, 0.3), NOTHING, value_of, groups)
    assert list(got) == ["all", "first", "second", "both", "none"]
    assert got["first"].ratio == pytest.approx(1 - 0.3 * 2.0 / 2)
    assert got["second"].ratio == pytest.approx(1 - 0.3 * 0.5 / 2)
    assert got["both"] == got["all"]
    assert got["first"].promised + got["second"].promised == pytest.approx(got["all"].promised)
    assert (got["none"].promised, got["none"].actual) == (0, 0)


def test_what_two_groups_do_to_each_other_is_seen_by_all_alone() -> None:
    model, lr = Bowl(1.0, 1.0, coupling=0.5), 0.2
    got = linearity(model, after_descent(model, lr), NOTHING, value_of, {"a": ["a"], "b": ["b"]})
    a, b = model.a.detach(), model.b.detach()
    grad_a, grad_b = a + 0.5 * b, b + 0.5 * a
    apart = got["a"].actual + got["b"].actual
    assert got["a"].ratio == pytest.approx(1 - lr / 2)
    assert got["all"].actual - apart == pytest.approx(0.5 * lr**2 * (grad_a @ grad_b).item())


@pytest.mark.parametrize("lr", [0.1, 1.0])
def test_on_a_quadratic_the_gradient_changes_by_the_curvature(lr: float) -> None:
    """g(W − η lr g) − g = −η lr H g, and g is an eigenvector."""
    model = Bowl(1.5, 1.5)
    got = gradient_predictiveness(model, after_descent(model, lr), NOTHING, value_of)
    assert got == pytest.approx({eta: eta * lr * 1.5 for eta in (0.25, 0.5, 1.0, 2.0)})


# -- a network with BatchNorm --------------------------------------------------------------------


def norm_net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(dropout), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3),
    ).double()  # fmt: skip


def images() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64), torch.arange(8) % 3


def after_sgd(model: nn.Module, lr: float) -> dict[str, Tensor]:
    other = deepcopy(model).train()
    torch.autograd.backward(cross_entropy(other(images()[0]), images()[1]))
    torch.optim.SGD(other.parameters(), lr=lr).step()
    return other.state_dict()


def test_a_tiny_step_brings_what_it_promises() -> None:
    model = norm_net()
    groups = {name: [name] for name, _ in model.named_parameters()}
    for name, got in linearity(
        model, after_sgd(model, 1e-5), images(), cross_entropy, groups
    ).items():
        if name == "0.bias":  # BatchNorm takes it away again
            assert got.promised == pytest.approx(0, abs=1e-15)
        else:
            assert got.ratio == pytest.approx(1, abs=1e-3), name


def test_the_loss_is_that_of_the_same_batch_in_train_mode() -> None:
    model = norm_net()
    model.eval()
    following = after_sgd(model, 0.5)
    got = linearity(model, following, images(), cross_entropy, {"conv": ["0.weight"]})
    for group, names in (("all", list(following)), ("conv", ["0.weight"])):
        losses = []
        for state in (model.state_dict(), model.state_dict() | {n: following[n] for n in names}):
            other = norm_net()
            other.load_state_dict(state)
            losses.append(cross_entropy(other.train()(images()[0]), images()[1]).item())
        assert got[group].actual == pytest.approx(losses[1] - losses[0], rel=1e-10)
    assert got["all"].ratio != pytest.approx(1, abs=0.05), "this step is not tiny"


def test_predictiveness_equals_two_backward_passes() -> None:
    model = norm_net()
    following = after_sgd(model, 0.5)
    grads = []
    for state in (model.state_dict(), following):
        other = norm_net()
        other.load_state_dict(state)
        torch.autograd.backward(cross_entropy(other(images()[0]), images()[1]))
        grads.append(
            torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None])
        )
    got = gradient_predictiveness(model, following, images(), cross_entropy, etas=(0.0, 1.0))
    assert got[1.0] == pytest.approx(((grads[1] - grads[0]).norm() / grads[0].norm()).item())
    assert got[0.0] == 0


def test_dropout_draws_the_same_masks_before_and_after() -> None:
    model = norm_net(dropout=0.5)
    stay = model.state_dict()
    got = linearity(model, stay, images(), cross_entropy, {})["all"]
    assert (got.promised, got.actual) == (0, 0)
    assert isnan(got.ratio)
    assert gradient_predictiveness(model, stay, images(), cross_entropy, etas=(1,)) == {1.0: 0}


def test_the_model_is_left_as_it_was() -> None:
    model = norm_net(dropout=0.5)
    model[0].weight.requires_grad_(False)  # type: ignore[index]
    model[2].eval()  # type: ignore[index]
    following = {name: x + 1 for name, x in model.state_dict().items()}
    before = {name: x.clone() for name, x in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_numbers = torch.get_rng_state()
    linearity(model, following, images(), cross_entropy, {"conv": ["0.weight"]})
    gradient_predictiveness(model, following, images(), cross_entropy)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert not model[0].weight.requires_grad  # type: ignore[index]


# -- edges ---------------------------------------------------------------------------------------


def test_a_state_without_a_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="to hold every parameter, but got none for b. Take it"):
        linearity(Bowl(1, 1), {"a": torch.zeros(2)}, NOTHING, value_of, {})


def test_a_group_of_unknown_parameters_is_refused() -> None:
    model = Bowl(1, 1)
    with pytest.raises(ValueError, match="group 'x' to name parameters, but got 'c'. Take"):
        linearity(model, after_descent(model, 1), NOTHING, value_of, {"x": ["a", "c"]})


def test_json_has_none_for_nan() -> None:
    plain = Linearity(0.0, 0.5, float("nan")).to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain == {"promised": 0.0, "actual": 0.5, "ratio": None}
