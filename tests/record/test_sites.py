"""Which modules are sites and in what order, and which dimension of an output counts channels."""

from typing import Any

import pytest
import torch
from byhand import inputs, sgd, train_by_hand, value
from torch import Tensor, nn

from gradflow import Recorder, Trace
from gradflow.record import DEFAULT_MEASURES


def recorded(model: nn.Module, x: Tensor) -> Trace:
    optimizer = sgd(model)
    with Recorder(model, optimizer, measures=DEFAULT_MEASURES) as recorder:
        out = model(x)
        (out[0] if isinstance(out, tuple) else out).square().sum().backward()
        optimizer.step()
    return recorder.trace


# -- sites -------------------------------------------------------------------------------------


class Attention(nn.Module):
    """As in a graph attention network: a linear layer inside, and vectors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.lin = nn.Parameter(inputs(4, seed=1)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(x)
        return (h @ self.source)[:, None].softmax(0) * h


def test_a_module_with_parameters_and_children_is_a_site() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Attention(), nn.Linear(4, 2))
    x = inputs(5, 4)
    z = model[1](model[0](x))
    out = model[2](z)
    want = torch.autograd.grad(out.square().sum(), z)[0].norm().item()
    trace = recorded(model, x)
    assert value(trace, "output_grad_norm", "1") == pytest.approx(want, rel=1e-5)
    assert value(trace, "output_rms", "1") == pytest.approx(z.square().mean().sqrt().item(), 1e-5)
    assert trace.sites == (
        "0", "0.weight", "0.bias", "1.lin", "1.lin.weight", "1.lin.bias", "1", "1.source",
        "2", "2.weight", "2.bias",
    )  # fmt: skip


def test_a_container_that_hands_on_its_last_output_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gradflow.record import outputs

    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 4), nn.ReLU())
            self.unused = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x * self.unused))

    reads = []
    real = outputs.output_sums
    monkeypatch.setattr(outputs, "output_sums", lambda *a, **k: reads.append(1) or real(*a, **k))
    torch.manual_seed(0)
    trace = recorded(nn.Sequential(Scaled(), nn.Linear(4, 1)), inputs(5, 4))
    assert len(reads) == 3
    for measure in ("output_rms", "output_zero_fraction", "output_grad_norm"):
        assert value(trace, measure, "0") == value(trace, measure, "0.1")


def test_attention_and_recurrent_cells_have_outputs_and_their_parameters_beside_them() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head, self.cell = nn.Linear(6, 2), nn.LSTMCell(4, 6)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.attention(x, x, x)
            state = None
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return self.head(state[0])

    trace = recorded(Net(), inputs(3, 2, 4))
    assert trace.sites == (
        "attention", "attention.in_proj_weight", "attention.in_proj_bias",
        "attention.out_proj.weight", "attention.out_proj.bias",
        "cell", "cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh", "cell#1",
        "head", "head.weight", "head.bias",
    )  # fmt: skip
    for site in ("attention", "cell", "cell#1", "head"):
        assert value(trace, "output_grad_norm", site) > 0


def test_a_tied_head_is_a_site_of_its_own() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.inner = nn.Embedding(7, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.inner(self.embedding(ids)))

    model = Tied()
    trace = train_by_hand(model, lambda *_: model(torch.tensor([[1, 2, 6]])).square().mean())
    assert [site for site in trace.sites if "." not in site] == ["embedding", "inner", "head"]
    assert trace.kinds[trace.sites.index("head")] == "linear"


def test_a_parametrization_is_no_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.orthogonal(model[2])
    trace = recorded(model, inputs(5, 4))
    assert [site for site in trace.sites if "weight" not in site and "bias" not in site] == [
        "0", "1", "2"
    ]  # fmt: skip


# -- channels ----------------------------------------------------------------------------------


class LayerNorm2d(nn.LayerNorm):
    """As torchvision has it: over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ToSequence(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Scale(nn.Module):
    """A layer of no known type."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


# Layers, the shape of their input, and the dimension of the channels behind the last of them.
LAYOUTS: list[tuple[list[nn.Module], tuple[int, ...], int]] = [
    ([nn.Conv1d(2, 4, 1)], (5, 2, 7), 1),
    ([nn.Conv1d(2, 4, 1)], (2, 7), 0),
    ([nn.Conv2d(2, 4, 1)], (5, 2, 3, 6), 1),
    ([nn.Conv2d(2, 4, 1)], (2, 3, 6), 0),
    ([nn.Conv3d(2, 4, 1)], (5, 2, 3, 6, 7), 1),
    ([nn.Conv3d(2, 4, 1)], (2, 3, 6, 7), 0),
    ([nn.ConvTranspose2d(2, 4, 1)], (2, 3, 6), 0),
    ([nn.LazyConv2d(4, 1)], (2, 3, 6), 0),
    ([nn.Conv2d(2, 4, 1), Scale()], (2, 3, 6), 0),
    ([nn.Conv2d(2, 4, 1), ToSequence(), Scale()], (5, 2, 3, 6), 2),
    ([nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4)], (5, 2, 7), 1),
    ([nn.Conv2d(2, 4, 1), nn.InstanceNorm2d(4, affine=True)], (2, 3, 6), 0),
    ([nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4)], (5, 2, 3, 6), 1),
    ([nn.Conv2d(2, 4, 1), LayerNorm2d(4)], (5, 2, 3, 6), 1),
    ([nn.Conv2d(2, 4, 1), LayerNorm2d(4)], (5, 2, 3, 4), 1),
    ([nn.Linear(2, 4)], (2,), 0),
    ([nn.Linear(2, 4)], (5, 2), 1),
    ([nn.Linear(2, 4)], (5, 7, 2), 2),
    ([nn.Linear(2, 4)], (5, 3, 3, 2), 3),
    ([nn.Linear(2, 4), nn.LayerNorm(4)], (5, 7, 2), 2),
    ([nn.Linear(2, 4), nn.RMSNorm(4)], (7, 2), 1),
    ([nn.Linear(2, 4), nn.Flatten(0), nn.Unflatten(0, (5, 7, 4)), Scale()], (5, 7, 2), 2),
    ([Scale(), nn.Conv2d(2, 4, 1)], (2, 3, 6), 0),
    ([nn.Bilinear(2, 2, 4)], (5, 7, 2), 2),
]


@pytest.mark.parametrize(("layers", "shape", "dim"), LAYOUTS)
def test_channels_follow_from_the_type_of_the_layer(
    layers: Any, shape: tuple[int, ...], dim: int
) -> None:
    """One channel of four is dead, in every layout: behind the ReLU a quarter has no element."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.relu = nn.ModuleList(layers), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, x) if isinstance(layer, nn.Bilinear) else layer(x)
            bias = torch.full((4,), 50.0)
            bias[2] = -1e3
            return self.relu(x + bias.view([4 if d == dim else 1 for d in range(x.dim())]))

    trace = recorded(Net(), inputs(*shape))
    assert value(trace, "output_dead_fraction", "relu") == 0.25


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("shape", [(7, 2), (5, 7, 2)])
def test_channels_of_recurrent_layers(kind: Any, shape: tuple[int, ...]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.relu = kind(2, 4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.rnn(x)[0] + torch.tensor([5.0, 5.0, -9.0, 5.0]))

    assert value(recorded(Net(), inputs(*shape)), "output_dead_fraction", "relu") == 0.25
