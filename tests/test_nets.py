"""The networks: torchvision's when residual, the same without the skip when plain."""

import pytest
import torch
import torchvision
from torch import nn

from gradflow import nets
from gradflow.architectures import stem_for
from gradflow.nets import NETWORKS, BasicBlock, initialise, plain_34, resnet_34


def n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "shortcut", "expected"),
    [
        (plain_34, "B", 21_113_413),
        (resnet_34, "B", 21_287_237),
        (resnet_34, "A", 21_113_413),
    ],
)
def test_parameter_counts_with_five_classes(build, shortcut: str, expected: int) -> None:
    assert n_parameters(build(5, shortcut=shortcut)) == expected


@pytest.mark.parametrize("depth", [18, 34])
def test_weights_load_into_torchvision_and_outputs_agree(depth: int) -> None:
    ours = NETWORKS[f"resnet_{depth}"](7, seed=0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
    theirs.load_state_dict(ours.state_dict())  # strict: every name and shape is the same
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mode in (True, False):
            difference = ours.train(mode)(images) - theirs.train(mode)(images)
            assert difference.abs().max() < 1e-6


def test_plain_block_is_the_residual_block_at_strength_zero() -> None:
    """The skip is the only difference: out = relu(branch + skip · x)."""
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    outputs = {}
    for skip in (0.0, 0.25, 1.0):
        block = BasicBlock(8, 8, 1, skip=skip, shortcut="A")
        initialise(block, seed=0)
        branch = block.bn2(block.conv2(block.relu1(block.bn1(block.conv1(x)))))
        outputs[skip] = block(x)
        torch.testing.assert_close(outputs[skip], torch.relu(branch + skip * x))
    assert not torch.equal(outputs[0.0], outputs[1.0])


def test_parameter_free_shortcut_takes_every_second_pixel_and_pads_with_zeros() -> None:
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    out = nets.PadShortcut(2, 3)(x)
    assert out.shape == (1, 5, 2, 2)
    torch.testing.assert_close(out[0, 0], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    assert out[0, 2:].count_nonzero() == 0


def test_no_module_is_called_twice_and_none_works_in_place() -> None:
    """Hooks and attributions see every activation only if each call has its own module."""
    model = resnet_34(5)
    calls: dict[str, int] = {}
    for name, module in model.named_modules():
        assert not getattr(module, "inplace", False)
        if not list(module.children()):
            module.register_forward_hook(
                lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1)
            )
    model(torch.zeros(2, 3, 32, 32))
    assert set(calls.values()) == {1}


def test_small_stem_keeps_the_image_at_full_size() -> None:
    seen = {}
    model = resnet_34(10, stem="small")
    model.layer1.register_forward_hook(lambda _m, _i, out: seen.update(size=out.shape[-1]))
    model(torch.zeros(2, 3, 32, 32))
    assert seen["size"] == 32


@pytest.mark.parametrize(("size", "stem"), [(8, "small"), (32, "small"), (64, "photo")])
def test_stem_follows_the_image_size(size: int, stem: str) -> None:
    assert stem_for(size) == stem


def test_networks_of_one_seed_share_the_values_of_the_tensors_they_share() -> None:
    plain, residual = plain_34(5, seed=3).state_dict(), resnet_34(5, seed=3).state_dict()
    assert set(plain) < set(residual)
    assert all(torch.equal(plain[name], residual[name]) for name in plain)
    other = plain_34(5, seed=4).state_dict()
    assert not torch.equal(plain["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(plain["layer1.0.conv1.weight"], plain["layer1.0.conv2.weight"])


@pytest.mark.parametrize(
    ("init", "std"),
    [
        ("kaiming", (2 / (128 * 9)) ** 0.5),  # √(2 / fan_out)
        ("torch-default", (1 / (3 * 64 * 9)) ** 0.5),  # uniform: 1 / √(3 fan_in)
    ],
)
def test_initial_spread_is_the_closed_form(init: str, std: float) -> None:
    weight = plain_34(5, init=init, seed=0).layer2[0].conv1.weight
    assert weight.std().item() == pytest.approx(std, rel=0.02)


def test_initialisation_without_a_seed_is_torchvisions() -> None:
    """From one state of the global generator, fc included: bias and weight alike in spread."""
    model = resnet_34(1000, init="kaiming")
    bound = 512**-0.5
    assert model.fc.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert model.fc.bias.abs().max().item() == pytest.approx(bound, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 50, "num_classes": 5}, "`depth` in \\[18, 34\\], but got 50"),
        ({"depth": 34, "num_classes": 1}, "at least 2, but got 1"),
        ({"depth": 34, "num_classes": 5, "shortcut": "C"}, "`shortcut`.*but got 'C'"),
        ({"depth": 34, "num_classes": 5, "stem": "big"}, "`stem`.*but got 'big'"),
    ],
)
def test_wrong_arguments_say_what_was_expected(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nets.ResNet(**arguments)
