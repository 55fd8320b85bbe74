"""The state at the start: closed forms, a model that stays as it was, errors that help."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gradflow
from gradflow.examine.initial import InitialCheck, check
from gradflow.examine.passes import CROSS_ENTROPY, FUNCTIONAL, OWN_LABELS


def orthogonal(gain: float, depth: int = 12, width: int = 16) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers = [nn.Linear(width, width, bias=False).double() for _ in range(depth)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight, gain)
        return nn.Sequential(*layers)

    return make


def mlp(*between: type[nn.Module], depth: int, width: int, xavier: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        if xavier:
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, *(one(width) if one is nn.BatchNorm1d else one() for one in between)]
    return nn.Sequential(*layers, nn.Linear(width, 10))


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


def test_a_dead_layer_is_vanishing_and_has_a_place() -> None:
    """Layer 11 of 20: its biases let the layers behind it live."""

    def make() -> nn.Module:
        model = mlp(nn.ReLU, depth=20, width=16)
        nn.init.constant_(model.get_parameter("20.bias"), -100.0)
        return model

    found = check(make, (16,), draws=2)
    assert found.label == "unlikely to train: vanishing from 20 on"
    assert len(found.without_gradient) == 11
    everything = check(lambda: nn.Sequential(*dead_everywhere()), (16,), draws=1)
    assert everything.outlook == "unlikely to train"
    assert everything.cause == "vanishing"


def dead_everywhere() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(4):
        linear = nn.Linear(16, 16)
        nn.init.constant_(linear.bias, -100.0)
        layers += [linear, nn.ReLU()]
    return layers


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


class ReZero(nn.Module):
    """x + 0 · f(x): Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(16, 16), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.relu(self.layer(x))


def test_a_dead_branch_beside_the_path_is_named() -> None:
    model = TwoInputs()
    model.ages = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16))
    model.images = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    nn.init.constant_(model.ages[0].bias, -100.0)
    found = check(model, [(8,), (2,)], draws=1)
    assert found.layers[0] == "images.0"
    assert found.without_gradient == ("ages.0",)


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


def test_own_labels() -> None:
    model = mlp(nn.ReLU, depth=2, width=16)
    images, labels = torch.randn(4, 16), torch.zeros(4, dtype=torch.long)
    found = check(model, images, draws=2, labels=labels)
    assert found.loss == OWN_LABELS
    by_draw = found.profiles["output_gradient"].per_draw
    assert (by_draw[0] == by_draw[1]).all(), "nothing was drawn"
    loss = nn.functional.cross_entropy(model(images), labels)
    output = model[0](images)
    loss = nn.functional.cross_entropy(model[1:](output), labels)
    (gradient,) = torch.autograd.grad(loss, output)
    assert by_draw[0, 0] == pytest.approx(gradient.norm().item(), rel=1e-5)


def test_what_is_not_finite_and_what_is_dead_is_named() -> None:
    model = mlp(nn.ReLU, depth=4, width=16)
    nn.init.constant_(model.get_parameter("2.bias"), -1e6)
    dead = check(model, (16,), draws=1)
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


@pytest.mark.parametrize(
    ("model", "input", "options", "message"),
    [
        (lambda: nn.Linear(4, 2), (4,), {}, "at least two layers with weights"),
        (lambda: mlp(nn.ReLU, depth=2, width=4), (5,), {}, "does not accept input of shape 5 in"),
        (
            lambda: mlp(nn.ReLU, depth=2, width=4),
            (4,),
            {"draws": 0},
            "`draws` to be from 1 to 1000",
        ),
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
