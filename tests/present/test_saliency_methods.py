"""Each method against a closed form, plain autograd or Captum's other classes; nothing is left."""

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import nn

from gradflow import nets
from gradflow.present.saliency import METHODS, attribute, attribute_all
from gradflow.present.saliency.methods import NOISE_DEVIATION, NOISE_SAMPLES, NOISE_SEED

CLASSES = ("cat", "dog", "fox")
SIDE = 12


@pytest.fixture
def linear():
    """y = W x: every gradient is a row of W, whatever the image."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3))


@pytest.fixture
def curved():
    """y_c = Σ w_c x², whose gradient 2 w x is linear in x and whose share of the logit is w x²."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.weight = nn.Parameter(torch.randn(3, 3 * SIDE * SIDE) / 20)

        def forward(self, x):
            return x.flatten(1).square() @ self.weight.T

    return Square()


@pytest.fixture
def images():
    return torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def rows(model):
    return model[1].weight.detach().view(3, 3, SIDE, SIDE)


def test_integrated_gradients_add_up_to_the_change_of_the_logit(curved, images):
    result = attribute(curved, images[:1], CLASSES, method="integrated-gradients")
    change = (curved(images[:1]) - curved(torch.zeros_like(images[:1])))[0].detach().numpy()
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), change, rtol=1e-4)
    np.testing.assert_allclose(result.changes, change, rtol=1e-5)
    np.testing.assert_allclose(result.deltas, 0, atol=1e-4)
    assert result.notes == ()
    want = (curved.weight.view(3, 3, SIDE, SIDE) * images[0] ** 2).sum(dim=1).detach()
    np.testing.assert_allclose(result.maps, want.numpy(), rtol=1e-3, atol=1e-5)


def test_a_sum_that_misses_the_change_by_more_than_5_percent_is_a_note(images):
    class Steps(nn.Module):
        """A staircase: its gradient is zero where it exists, and no path sums to its rise."""

        def forward(self, x):
            level = (4 * x.flatten(1).sum(dim=1, keepdim=True)).round()
            return torch.cat([level, -level, 0 * level], dim=1) + 0 * x.sum()

    result = attribute(Steps(), images[:1], CLASSES, n_classes=1, method="integrated-gradients")
    assert result.notes == ("sum misses by 100%",)


def test_smoothgrad_of_a_quadratic_is_the_gradient_at_the_mean_noise(curved, images):
    result = attribute(curved, images[:1], CLASSES, method="smoothgrad")
    with torch.random.fork_rng():
        torch.manual_seed(NOISE_SEED)
        noise = torch.normal(0.0, torch.full((3 * NOISE_SAMPLES, 3, SIDE, SIDE), NOISE_DEVIATION))
    mean = noise.view(3, NOISE_SAMPLES, 3, SIDE, SIDE).mean(dim=1)
    weight = curved.weight.detach().view(3, 3, SIDE, SIDE)
    want = (2 * weight * (images[0] + mean)).abs().amax(dim=1)
    np.testing.assert_allclose(result.maps, want.numpy(), rtol=1e-3, atol=1e-5)


def test_smoothgrad_is_seeded_and_leaves_the_random_state_alone(curved, images):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = attribute_all(curved, images, CLASSES, method="smoothgrad")
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    alone = attribute(curved, images[2:3], CLASSES, method="smoothgrad")
    np.testing.assert_array_equal(first[2].maps, alone.maps)


def test_occlusion_of_a_linear_network_is_what_its_windows_hold(linear, images):
    """A window of 2 px, moved by 1, lowers the logit by Σ w x inside; a pixel has their mean."""
    result = attribute(linear, images[:1], CLASSES, method="occlusion")
    product = (rows(linear) * images[0]).sum(dim=1)
    inside = nn.functional.avg_pool2d(product[:, None], 2, stride=1) * 4
    ones = torch.ones_like(inside[:1])
    spread = nn.functional.conv_transpose2d(inside, torch.ones(1, 1, 2, 2))
    count = nn.functional.conv_transpose2d(ones, torch.ones(1, 1, 2, 2))
    np.testing.assert_allclose(result.maps, (spread / count)[:, 0].numpy(), rtol=1e-3, atol=1e-5)


def test_guided_backprop_lets_no_negative_gradient_through_a_relu(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 8), nn.ReLU(), nn.Linear(8, 3))
    result = attribute(model, images[:1], CLASSES, method="guided-backprop")
    first, last = model[1], model[3]
    is_active = first(images[:1].flatten(1)) > 0
    for index in range(3):
        passed = last.weight[index].clamp(min=0) * is_active
        want = (passed @ first.weight).view(3, SIDE, SIDE).abs().amax(dim=0)
        np.testing.assert_allclose(result.maps[index], want.detach().numpy(), rtol=1e-4, atol=1e-7)
    assert result.notes == ("mostly edges (Adebayo et al. 2018)",)


def test_guided_backprop_needs_relu_modules(linear, images):
    with pytest.raises(ValueError, match=r"nn.ReLU modules, .* got one without. Use another"):
        attribute(linear, images[:1], CLASSES, method="guided-backprop")


@pytest.mark.parametrize("build", [nets.plain_18, nets.resnet_18])
def test_gradcam_of_all_classes_in_one_pass_equals_captums_of_each(build):
    model = build(3, stem="small", seed=0).eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    passes = []
    hook = model.fc.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    found = attribute_all(model, images, CLASSES)
    hook.remove()
    assert passes == [2, 1, 2]  # probabilities, the search for the layer, the maps of all classes
    captum = LayerGradCam(model, model.get_submodule(found[0].layer))
    for index in range(3):
        small = captum.attribute(images, target=index, relu_attributions=True)
        want = LayerAttribution.interpolate(small, (16, 16), interpolate_mode="bilinear")
        for result, values in zip(found, want[:, 0].detach().numpy(), strict=True):
            np.testing.assert_allclose(result.maps[index], values, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_the_maps_of_its_images_one_by_one(method, images, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    monkeypatch.setattr("gradflow.present.saliency.methods.MOST_PER_BATCH", 2)
    together = attribute_all(model, images, CLASSES, method=method, n_classes=2)
    for image, found in zip(images, together, strict=True):
        alone = attribute(model, image[None], CLASSES, method=method, n_classes=2)
        assert alone.map_classes == found.map_classes
        np.testing.assert_allclose(found.maps, alone.maps, rtol=1e-4, atol=1e-6)
