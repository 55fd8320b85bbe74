"""Saliency maps against closed forms and plain autograd; the model comes back as it was."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from gradflow import nets
from gradflow.present import saliency

CLASSES = ("cat", "dog", "fox")


class Tiny(nn.Module):
    """y_c = b_c + Σ_k W_ck · mean(A_k), with A = relu(conv(x)): all gradients are known."""

    def __init__(self, stride: int = 1, n_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, n_classes)

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean(dim=(2, 3)))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Tiny()


@pytest.fixture
def image():
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_what_is_not_finite_is_no_map_and_no_probability(tiny, image):
    """inf · 0 is NaN: the weights are finite, and what comes of them is not."""
    torch.nn.init.constant_(tiny.conv.weight, 1e3)
    torch.nn.init.constant_(tiny.fc.weight, 3e38)
    with pytest.raises(ValueError, match="Expected finite probabilities and maps"):
        saliency.attribute(tiny, image, CLASSES)


# -- the values --------------------------------------------------------------------------------


def test_gradcam_is_rectified_before_it_is_enlarged(image):
    torch.manual_seed(0)
    tiny = Tiny(stride=2)
    result = saliency.attribute(tiny, image, CLASSES)
    with torch.no_grad():
        activations = functional.relu(tiny.conv(image))[0]
        small = functional.relu(torch.einsum("ck,kij->cij", tiny.fc.weight / 64, activations))
        want = functional.interpolate(small[None], (16, 16), mode="bilinear")[0]
    assert small.shape == (3, 8, 8)
    np.testing.assert_allclose(result.maps, want.numpy(), rtol=1e-5, atol=1e-9)


def test_gradient_is_the_largest_absolute_derivative_over_the_colours(tiny, image):
    result = saliency.attribute(tiny, image, CLASSES, method="gradient")
    x = image.clone().requires_grad_()
    for index, logit in enumerate(tiny(x)[0]):
        (grad,) = torch.autograd.grad(logit, x, retain_graph=True)
        want = grad[0].abs().amax(dim=0).numpy()
        np.testing.assert_allclose(result.maps[index], want, rtol=1e-5, atol=1e-9)
    assert result.layer is None


def test_probabilities_are_the_softmax_in_eval_mode(image):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    logits = model[0](image).mean(dim=(2, 3))[0].detach().double()
    want = (logits.exp() / logits.exp().sum()).numpy()
    result = saliency.attribute(model, image, CLASSES)
    np.testing.assert_allclose(result.probabilities, want, rtol=1e-6)


@pytest.mark.parametrize("method", saliency.METHODS)
def test_maps_can_be_taken_where_gradients_are_off_and_relus_in_place(method):
    resnet = torchvision.models.resnet
    model = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = saliency.attribute(model, image, CLASSES, method=method)
    assert result.maps.shape == (3, 64, 64)
    assert np.isfinite(result.maps).all()
    assert (result.maps.max(axis=(1, 2)) > 0).any()
    assert (result.method, result.classes) == (method, CLASSES)


# -- which classes -----------------------------------------------------------------------------


def with_logits(*logits: float) -> nn.Module:
    model = Tiny(n_classes=len(logits))
    nn.init.zeros_(model.fc.weight)
    model.fc.bias.data = torch.tensor(logits)
    return model


def test_the_most_probable_classes_come_first_where_not_all_are_shown(image):
    result = saliency.attribute(with_logits(0.0, 3.0, 1.0), image, CLASSES, n_classes=2)
    assert result.map_classes == (1, 2)
    many = with_logits(*(float(i) for i in range(12)))
    result = saliency.attribute(many, image, [str(i) for i in range(12)])
    assert result.map_classes == tuple(range(11, 1, -1))


# -- which layer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "stem", "size", "want"),
    [
        (nets.resnet_18, "photo", 224, "layer4.1"),  # 7 x 7
        (nets.plain_18, "photo", 224, "layer4.1"),
        (nets.resnet_18, "photo", 64, "layer2.1"),  # 8 x 8, while layer4 has 2 x 2
        (nets.resnet_18, "small", 32, "layer3.1"),
        (nets.resnet_18, "photo", 16, "relu"),  # 8 x 8, while every block has 4 x 4 or less
        (nets.resnet_18, "photo", 8, "layer1.1"),  # 2 x 2, the largest that a block has
    ],
)
def test_gradcam_takes_the_last_block_with_a_map_of_seven_by_seven(build, stem, size, want):
    with torch.device("meta"):  # shapes without the arithmetic
        model, image = build(3, stem=stem).eval(), torch.zeros(1, 3, size, size)
    name, layer = saliency.gradcam_layer(model, image)
    assert name == want
    assert layer is model.get_submodule(want)


def test_a_module_called_twice_is_left_out(image):
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x):
            return self.relu(self.relu(self.conv(x)) - 1).mean(dim=(2, 3))

    assert saliency.gradcam_layer(Reused(), image)[0] == "conv"


def test_a_network_without_feature_maps_is_refused_with_a_way_out(image):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    with pytest.raises(ValueError, match="without. Use the method `gradient`"):
        saliency.attribute(model, image, CLASSES)
    assert saliency.attribute(model, image, CLASSES, method="gradient").maps.max() > 0


# -- the model comes back ----------------------------------------------------------------------


def state_of(model: nn.Module):
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: weight.requires_grad for name, weight in model.named_parameters()},
        {name: len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
         for name, m in model.named_modules()},
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    )  # fmt: skip


def assert_same_state(before, after):
    assert before[:3] == after[:3]
    for name, tensor in before[3].items():
        assert torch.equal(tensor, after[3][name]), name


@pytest.mark.parametrize("method", saliency.METHODS)
def test_the_model_comes_back_as_it_was(method):
    model = nets.resnet_18(3, seed=0).train()
    model.bn1.eval()  # flags of their own
    model.fc.bias.requires_grad_(False)
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before = state_of(model)
    image = torch.randn(1, 3, 32, 32)
    saliency.attribute(model, image, CLASSES, method=method)
    assert_same_state(before, state_of(model))
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))
    others = [p.grad for name, p in model.named_parameters() if name != "conv1.weight"]
    assert others == [None] * len(others)
    assert not image.requires_grad
    assert image.grad is None


def test_the_model_comes_back_after_an_error(tiny, image):
    class Fails(Tiny):
        def forward(self, x):
            if torch.is_grad_enabled():
                raise RuntimeError("in the middle")
            return super().forward(x)

    model = Fails().train()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        saliency.attribute(model, image, CLASSES)
    assert_same_state(before, state_of(model))


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"method": "magic"}, r"one of \('gradcam', 'gradient', .*\), but got 'magic'"),
        ({"image": torch.zeros(2, 3, 16, 16)}, r"\(1, 3, S, S\), but got \(2, 3, 16, 16\)"),
        ({"image": torch.zeros(1, 3, 16, 8)}, r"square image .* but got \(1, 3, 16, 8\)"),
        ({"class_names": CLASSES[:2]}, r"each of 2 classes, but got \(1, 3\)"),
        ({"n_classes": 0}, "at least 1, but got 0"),
    ],
)
def test_mistakes_are_named(changes, want, tiny, image):
    with pytest.raises(ValueError, match=want):
        saliency.attribute(tiny, **{"image": image, "class_names": CLASSES, **changes})
