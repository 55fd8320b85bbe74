"""Reset: the named layers and what belongs to them go back, all else stays."""

import pytest
import torch
from torch import nn

from gradflow.examine.path import path_layers, path_weights, reset_layers
from gradflow.nets import plain_18, resnet_18


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Moves everything, buffers too, and returns what it was before."""
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    for value in model.state_dict().values():
        value.add_(1)
    return initial


def changed(one: nn.Module, other: nn.Module) -> set[str]:
    theirs = other.state_dict()
    return {
        name for name, value in one.state_dict().items() if not torch.equal(value, theirs[name])
    }


def test_path_of_the_networks() -> None:
    plain, residual = plain_18(3, stem="small"), resnet_18(3, stem="small")
    assert path_layers(plain) == path_layers(residual), "projections are beside the path"
    assert len(path_layers(plain)) == 18
    assert path_layers(plain)[:2] == ["conv1", "layer1.0.conv1"]
    assert path_weights(plain)[-1] == "fc.weight"


def test_first_layers_go_back_with_their_norms_and_projections() -> None:
    model = resnet_18(3, stem="small", seed=0)
    initial = trained(model)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    without = reset_layers(model, initial, path_layers(model)[:7])  # to the end of layer2.0
    prefixes = ("conv1.", "bn1.", "layer1.", "layer2.0.")
    assert changed(without, model) == {name for name in kept if name.startswith(prefixes)}
    for name in changed(without, model):
        assert torch.equal(without.state_dict()[name], initial[name])
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_the_reset_layers_compute_as_before_training() -> None:
    model = plain_18(3, stem="small", seed=0).eval()
    images = torch.randn(2, 3, 8, 8)
    start = model.bn1(model.conv1(images))
    initial = trained(model)
    without = reset_layers(model, initial, ["conv1"])
    assert isinstance(without, type(model))
    assert torch.equal(without.bn1(without.conv1(images)), start)
    assert not torch.equal(model.bn1(model.conv1(images)), start)


def test_what_cannot_be_reset_is_said() -> None:
    model = resnet_18(3, stem="small")
    with pytest.raises(ValueError, match="Expected layers of the path, but got 'layer2.0.downsamp"):
        reset_layers(model, model.state_dict(), ["layer2.0.downsample.0"])
    with pytest.raises(ValueError, match=r"Expected an initial value for bn1.weight"):
        reset_layers(model, {"conv1.weight": model.conv1.weight}, ["conv1"])
