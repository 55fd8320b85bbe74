"""Dead channels: as many are found as were planted, however the network calls its ReLU."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from gradflow.examine.activations import by_stage, dead_channels
from gradflow.examine.batchnorm import recalibrated
from gradflow.nets import plain_18, resnet_18


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 8)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(images)), inplace=True)
        return torch.relu(self.head(x.mean((2, 3))))


def sequential() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))


@pytest.fixture
def batches() -> list[Tensor]:
    torch.manual_seed(0)  # the weights of the models come from it as well
    return [torch.randn(8, 3, 32, 32), torch.randn(5, 3, 32, 32)]


def plant(model: nn.Module, norm: str, n_dead: int) -> int:
    """Shift the first channels by ten deviations: none of some thousand values comes up to 0.

    Returns the number of all channels.
    """
    layer = model.get_submodule(norm)
    assert isinstance(layer, nn.BatchNorm2d)
    with torch.no_grad():
        layer.bias.zero_()
        layer.bias[:n_dead] = -10
    return layer.num_features


@pytest.mark.parametrize(
    ("make", "norm", "site"),
    [
        (sequential, "1", "2"),
        (Functional, "norm", ""),
        (lambda: plain_18(3, stem="small", seed=0), "layer1.0.bn2", "layer1.0.relu2"),
        (lambda: resnet_18(3, stem="small", seed=0), "layer1.0.bn1", "layer1.0.relu1"),
        (torchvision.models.resnet18, "layer1.0.bn1", "layer1.0.relu"),
    ],
    ids=["in place", "functions", "plain", "residual", "torchvision"],
)
@pytest.mark.parametrize("n_dead", [0, 3])
def test_planted_channels_are_found(
    batches: list[Tensor], make: Callable[[], nn.Module], norm: str, site: str, n_dead: int
) -> None:
    model = make()
    n_channels = plant(model, norm, n_dead)
    found = dead_channels(recalibrated(model, batches), batches)
    assert found[site] == (n_dead, n_channels)


def test_each_call_of_one_relu_is_a_site(batches: list[Tensor]) -> None:
    model = torchvision.models.resnet18()
    plant(model, "layer1.0.bn1", 5)
    found = dead_channels(recalibrated(model, batches), batches)
    assert len(found) == 17
    assert found["layer1.0.relu"] == (5, 64)
    assert found["layer1.0.relu#1"] == (0, 64)
    assert by_stage(found)["layer1"] == [5, 4 * 64]


def test_one_position_of_one_image_keeps_a_channel_alive() -> None:
    images = [-torch.ones(4, 2, 5, 5), -torch.ones(3, 2, 5, 5)]
    relu = nn.Sequential(nn.ReLU())
    assert dead_channels(relu, images) == {"0": (2, 2)}
    images[1][2, 1, 4, 4] = 1e-6
    assert dead_channels(relu, images) == {"0": (1, 2)}
    images[0][0, 0, 0, 0] = torch.nan
    assert dead_channels(relu, images) == {"0": (0, 2)}, "NaN is another disease"


def test_what_is_no_relu_does_not_die() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(), nn.Linear(2, 2), nn.ReLU())
    assert list(dead_channels(model, [torch.ones(2, 2)])) == ["3"]
