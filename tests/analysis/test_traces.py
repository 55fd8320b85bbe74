"""The made-up traces of these tests have the shape of those that a Recorder writes."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traces import RESIDUAL, make_network, make_trace, slope

from gradflow import Recorder


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        inside = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(inside)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.layer1, self.layer2 = (nn.Sequential(Block(), Block()) for _ in range(2))
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_made_up_traces_look_like_recorded_ones() -> None:
    torch.manual_seed(0)
    model = Net()
    measures = ("output_grad_norm", "grad_norm", "weight_norm", "update_norm")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, optimizer, measures=measures) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 6, 6)).square().sum().backward()
            optimizer.step()
    real = recorder.trace
    made = make_trace(dict.fromkeys(measures, 1.0), RESIDUAL, n_steps=2)
    assert made.sites == real.sites
    assert made.kinds == real.kinds
    np.testing.assert_array_equal(made.steps, real.steps)
    for measure in measures:
        taken = [~np.isnan(trace.values[measure]).all(axis=0) for trace in (made, real)]
        np.testing.assert_array_equal(taken[0], taken[1], err_msg=measure)


def test_a_made_up_network_has_the_profile_that_was_asked_for() -> None:
    layers = make_network(delta=-2).layers
    assert [layer.name for layer in layers] == list(RESIDUAL[:-1])
    np.testing.assert_allclose(slope(-2, 4), [0.01, 0.1, 1, 1e3])
