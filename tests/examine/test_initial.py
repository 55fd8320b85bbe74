"""The state at the start: closed forms, what is drawn, a model that stays as it was, errors."""

import json
import math

import pytest
import torch
from torch import nn

import gradflow
from gradflow.examine.initial import InitialCheck, check
from gradflow.examine.passes import CROSS_ENTROPY, OWN_LABELS
from tests.examine.stacks import mlp, orthogonal


@pytest.mark.parametrize(
    ("gain", "outlook", "cause"),
    [(0.1, "unlikely to train", "vanishing"), (0.4, "doubtful", "vanishing"),
     (1.0, "ordinary", ""), (2.5, "doubtful", "exploding")],
)  # fmt: skip
def test_an_orthogonal_linear_network_changes_by_its_gain(
    gain: float, outlook: str, cause: str
) -> None:
    found = check(orthogonal(gain), (16,), draws=3)
    change = found.profiles["output_gradient"].change
    expected = 10 * math.log10(gain)  # 11 layers without the classifier
    assert [change.low, change.mean, change.high] == pytest.approx([expected] * 3, abs=1e-9)
    assert found.profiles["forward"].change.mean == pytest.approx(-expected, abs=1e-9)
    assert (found.outlook, found.cause) == (outlook, cause)
    assert found.is_certain
    assert found.loss == CROSS_ENTROPY


@pytest.mark.parametrize(("xavier", "factor"), [(True, 0.236), (False, 0.141)])
def test_a_sigmoid_mlp_loses_what_theory_says(xavier: bool, factor: float) -> None:
    """E[σ'²] σ_w² n: 0.0557 and 0.0200 in the square."""
    found = check(
        lambda: mlp(nn.Sigmoid, depth=10, width=512, xavier=xavier), (512,), draws=3, batch_size=16
    )
    delta = found.profiles["output_gradient"].rate
    assert 10**delta.decades_per_layer == pytest.approx(factor, rel=0.05)
    assert found.label.startswith(("doubtful: vanishing from", "unlikely to train: vanishing"))


def test_batchnorm_and_relu_grow_and_train_all_the_same() -> None:
    """λ = π / (π − 1) for large batches, Yang et al. 2019: 1.501 at 50."""
    found = check(
        lambda: mlp(nn.BatchNorm1d, nn.ReLU, depth=20, width=256), (256,), draws=3, batch_size=50
    )
    assert found.label == "ordinary"
    assert found.norm == "BatchNorm"
    assert found.profiles["output_gradient"].rate.growth == pytest.approx(1.501, rel=0.05)
    assert found.profiles["forward"].median == pytest.approx(1, rel=0.01), "the norm sets it"
    assert "with BatchNorm that train with SGD and AdamW" in str(found)


def test_transitions_between_stages_are_measured() -> None:
    """Four stages of five orthogonal layers, gain .01 at the transitions: 10^-6 by autograd."""

    def make() -> nn.Module:
        layers = [nn.Linear(16, 16, bias=False) for _ in range(20)]
        for i, layer in enumerate(layers):
            nn.init.orthogonal_(layer.weight, 0.01 if i in (5, 10, 15) else 1.0)
        return nn.Sequential(*(nn.Sequential(*layers[i : i + 5]) for i in (0, 5, 10, 15)),
                             nn.Linear(16, 4))  # fmt: skip

    found = check(make, (16,), draws=2)
    assert found.profiles["output_gradient"].change.mean == pytest.approx(-6, abs=1e-3)
    assert found.label == "doubtful: vanishing from 1.4 on"
    assert "10^-6.0 times" in found.sentences()[0]
    assert "The largest single fall is 100 times" in str(found)


def test_a_network_that_is_dead_everywhere_vanishes() -> None:
    def make() -> nn.Module:
        model = mlp(nn.ReLU, depth=4, width=16)[:-1]
        for linear in model[::2]:
            nn.init.constant_(linear.bias, -100.0)
        return model

    found = check(make, (16,), draws=1)
    assert (found.outlook, found.cause) == ("unlikely to train", "vanishing")


def test_what_is_not_finite_and_what_is_dead_is_named() -> None:
    model = mlp(nn.ReLU, depth=4, width=16)
    nn.init.constant_(model.get_parameter("2.bias"), -1e6)
    dead = check(model, (16,), draws=2)
    assert dead.dead["3"] == 1
    assert dead.without_gradient == ("0", "2")
    assert "No gradient at all at 0, 2: it is exactly 0" in str(dead)
    assert "These layers do not learn" in str(dead)
    assert dead.label == "unlikely to train: vanishing from 2 on"
    nn.init.constant_(model.get_parameter("4.weight"), math.inf)
    broken = check(model, (16,), draws=1)
    assert broken.label == "unlikely to train: exploding"
    assert broken.nonfinite[0].site == "4"
    assert "first at 4" in str(broken)


def test_a_last_layer_of_zeros_is_drawn() -> None:
    """ViT and others begin so; without a look behind it every gradient would be 0."""
    model = mlp(nn.ReLU, depth=3, width=16)
    head = model.get_parameter("6.weight")
    nn.init.zeros_(head)
    found = check(model, (16,), draws=2)
    assert found.has_zero_head
    assert "last layer starts at zero" in str(found)
    assert found.label == "ordinary"
    assert not head.any()
    nn.init.normal_(head, std=1e-9)  # trained by experiments/zoo.py's recipe it learns in 30 steps
    nearly = check(model, (16,), draws=2)
    assert (nearly.has_zero_head, nearly.label) == (True, "ordinary")
    nn.init.normal_(head, std=0.01)
    assert not check(model, (16,), draws=1).has_zero_head


def test_of_a_given_model_only_the_inputs_and_the_loss_are_drawn() -> None:
    model = gradflow.plain_18(10, stem="small")
    model.conv1.weight.requires_grad_(False)
    found = check(model, (3, 8, 8), draws=2)
    assert found.drawn == "inputs and loss"
    assert "The weights are one draw" in str(found)
    assert found.layers[0] == "conv1", "frozen layers are measured too"


def test_draws_follow_the_seed() -> None:
    def rate(seed: int, draws: int = 2) -> list[list[float]]:
        values = check(lambda: mlp(nn.ReLU, depth=4, width=16), (16,), seed=seed, draws=draws)
        drawn: list[list[float]] = values.profiles["output_gradient"].per_draw.tolist()
        return drawn

    first = rate(0)
    assert first == rate(0)
    assert first[0] != first[1]
    assert first[1] != rate(1)[0]
    assert first == rate(0, draws=3)[:2]


def test_own_labels() -> None:
    model = mlp(nn.ReLU, depth=2, width=16)
    images, labels = torch.randn(4, 16), torch.zeros(4, dtype=torch.long)
    found = check(model, images, draws=2, labels=labels)
    assert found.loss == OWN_LABELS
    by_draw = found.profiles["output_gradient"].per_draw
    assert (by_draw[0] == by_draw[1]).all(), "nothing was drawn"
    output = model[0](images)
    loss = nn.functional.cross_entropy(model[1:](output), labels)
    (gradient,) = torch.autograd.grad(loss, output)
    assert by_draw[0, 0] == pytest.approx(gradient.norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "input", "options", "message"),
    [
        (lambda: nn.Linear(4, 2), (4,), {}, "at least two layers with weights"),
        (lambda: mlp(nn.ReLU, depth=2, width=4), (5,), {}, "does not accept input of shape 5 in"),
        (orthogonal(1.0), (16,), {"draws": 0}, "`draws` to be from 1 to 1000"),
        (lambda: mlp(nn.ReLU, depth=2, width=4), (), {}, "the shape of one input"),
        (lambda: None, (4,), {}, "returned NoneType"),
        ("resnet18", (4,), {}, "a function that makes one, but got str"),
        (lambda: nn.Embedding(3, 3), torch.ones(2, 1), {}, "does not accept"),
        (lambda: nn.Flatten(), (4,), {}, "depends on its weights"),
        (orthogonal(1.0), (2, 16), {"labels": torch.zeros(8).long()}, r"shape \(B, K\)"),
    ],
)
def test_errors_say_what_to_do(model: object, input: object, options: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        check(model, input, **options)  # type: ignore[arg-type]


def test_json_is_plain_and_has_units() -> None:
    found: InitialCheck = check(lambda: mlp(nn.ReLU, depth=3, width=16), (16,), draws=2)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content == found.to_json()
    path = content["paths"][0]
    assert path["profiles"]["output_gradient"]["unit"] == "loss / activation"
    assert len(path["profiles"]["forward"]["per_draw"]) == 2
    assert len(path["profiles"]["forward"]["median"]) == len(path["layers"]) == 3
    assert content["outlook"] == "ordinary"
