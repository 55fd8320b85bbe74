"""Which modules are sites, which dimension of an output counts channels, what is measured of it."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from byhand import value
from loops import Net, draw, inputs, recorded, sgd, square, train_by_hand
from torch import Tensor, nn

# -- sites -------------------------------------------------------------------------------------


def test_a_module_with_parameters_and_children_is_a_site() -> None:
    """As in a graph attention network: a linear layer inside, and vectors of its own."""

    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.lin(x)
        return (h @ net.source)[:, None].softmax(0) * h

    attention = Net(forward, source=nn.Parameter(inputs(4, seed=1)), lin=nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(4, 4), attention, nn.Linear(4, 2))
    assert train_by_hand(model, lambda *_: square(model)).sites == (
        "0", "0.weight", "0.bias", "1.lin", "1.lin.weight", "1.lin.bias", "1", "1.source",
        "2", "2.weight", "2.bias",
    )  # fmt: skip


def test_a_container_that_hands_on_its_last_output_is_read_once(reads: list[bool]) -> None:
    scaled = Net(
        lambda net, x: net.relu(net.layer(x * net.scale)),
        layer=nn.Linear(4, 4), relu=nn.ReLU(), scale=nn.Parameter(torch.ones(1)),
    )  # fmt: skip
    model = nn.Sequential(scaled, nn.Linear(4, 1))
    train_by_hand(model, lambda *_: square(model), n_steps=1)
    assert len(reads) == 3


def test_attention_and_recurrent_cells_have_outputs_and_their_parameters_beside_them() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x, _ = net.attention(x, x, x)
        state = None
        for t in range(x.shape[1]):
            state = net.cell(x[:, t], state)
        return net.head(state[0])

    model = Net(
        forward, head=nn.Linear(6, 2), cell=nn.LSTMCell(4, 6),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
    )  # fmt: skip
    trace = train_by_hand(model, lambda *_: model(inputs(3, 2, 4)).square().mean())
    assert trace.sites == (
        "attention", "attention.in_proj_weight", "attention.in_proj_bias",
        "attention.out_proj.weight", "attention.out_proj.bias",
        "cell", "cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh", "cell#1",
        "head", "head.weight", "head.bias",
    )  # fmt: skip


def test_a_tied_head_is_a_site_of_its_own() -> None:
    model = Net(
        lambda net, ids: net.head(net.inner(net.embedding(ids))),
        embedding=nn.Embedding(7, 4), inner=nn.Linear(4, 4), head=nn.Linear(4, 7, bias=False),
    )  # fmt: skip
    model.head.weight = model.embedding.weight
    trace = train_by_hand(model, lambda *_: model(torch.tensor([[1, 2, 6]])).square().mean())
    assert [site for site in trace.sites if "." not in site] == ["embedding", "inner", "head"]
    assert trace.kinds[trace.sites.index("head")] == "linear"


def test_a_parametrization_is_no_layer() -> None:
    """A weight that it computes has no output; what it is computed from has a gradient."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.orthogonal(model[2])
    trace = train_by_hand(model, lambda *_: square(model))
    assert [site for site in trace.sites if "weight" not in site and "bias" not in site] == [
        "0", "1", "2"
    ]  # fmt: skip


# -- channels ----------------------------------------------------------------------------------


class LayerNorm2d(nn.LayerNorm):
    """As torchvision has it: over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def to_sequence() -> Net:
    return Net(lambda net, x: x.flatten(2).transpose(1, 2))


def scale() -> Net:
    """A layer of no known type."""
    return Net(lambda net, x: x * net.scale, scale=nn.Parameter(torch.ones(())))


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
    ([nn.Conv2d(2, 4, 1), scale()], (2, 3, 6), 0),
    ([nn.Conv2d(2, 4, 1), to_sequence(), scale()], (5, 2, 3, 6), 2),
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
    ([nn.Linear(2, 4), nn.Flatten(0), nn.Unflatten(0, (5, 7, 4)), scale()], (5, 7, 2), 2),
    ([scale(), nn.Conv2d(2, 4, 1)], (2, 3, 6), 0),
    ([nn.Bilinear(2, 2, 4)], (5, 7, 2), 2),
]


@pytest.mark.parametrize(("layers", "shape", "dim"), LAYOUTS)
def test_channels_follow_from_the_type_of_the_layer(
    layers: Any, shape: tuple[int, ...], dim: int
) -> None:
    """One channel of four is dead, in every layout: behind the ReLU a quarter has no element."""

    def forward(net: Net, x: Tensor) -> Tensor:
        for layer in net.layers:
            x = layer(x, x) if isinstance(layer, nn.Bilinear) else layer(x)
        bias = torch.full((4,), 50.0)
        bias[2] = -1e3
        return net.relu(x + bias.view([4 if d == dim else 1 for d in range(x.dim())]))

    assert_a_quarter_is_dead(Net(forward, layers=nn.ModuleList(layers), relu=nn.ReLU()), shape)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("shape", [(7, 2), (5, 7, 2)])
def test_channels_of_recurrent_layers(kind: Any, shape: tuple[int, ...]) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.relu(net.rnn(x)[0] + torch.tensor([5.0, 5.0, -9.0, 5.0]))

    assert_a_quarter_is_dead(Net(forward, rnn=kind(2, 4), relu=nn.ReLU()), shape)


def assert_a_quarter_is_dead(model: nn.Module, shape: tuple[int, ...]) -> None:
    trace = recorded(model, lambda _: model(inputs(*shape)).square().sum())
    assert value(trace, "output_dead_fraction", "relu") == 0.25


# -- outputs of all types ----------------------------------------------------------------------


@dataclass(slots=True)
class Slots:
    logits: Tensor


@dataclass
class Late:
    label: str
    hidden: Tensor
    never: Tensor = field(init=False)


class Opaque:
    def __init__(self, z: Tensor) -> None:
        self.z = z


Named = namedtuple("Named", "count hidden")
OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda z: (z, None), lambda out: out[0]),
    "integers first": (lambda z: (None, torch.ones(2).long(), z, z * 3), lambda out: out[2]),
    "dict": (lambda z: {"mask": z > 0, "hidden": z, "more": z + 1}, lambda out: out["hidden"]),
    "slots": (Slots, lambda out: out.logits),
    "dataclass": (lambda z: Late("x", z), lambda out: out.hidden),
    "namedtuple": (lambda z: Named(3, z), lambda out: out.hidden),
    "nested": (
        lambda z: ([{"a": None, "b": (3, Slots(z))}], z + 1),
        lambda out: out[0][0]["b"][1].logits,
    ),
    "beside unknown": (lambda z: (Opaque(z), z), lambda out: out[1]),
    "packed": (lambda z: nn.utils.rnn.pack_sequence([z[:3], z[3:5]]), lambda out: out.data),
}
# What a layer may give that lies in memory in another way, or is of another type.
TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "double": lambda z: z.double(),
    "half": lambda z: z.half(),
    "complex": lambda z: torch.complex(z, 2 * z),
    "conjugate": lambda z: torch.complex(z, z).conj(),
    "negative": lambda z: torch.complex(z, z)[:1, :1].conj().imag,  # in memory, one number, as −x
    "expanded": lambda z: z[:1].expand(5, *z.shape[1:]),
    "overlapping": lambda z: z.as_strided((4, 3), (1, 1)),
    "turned": lambda z: z.T,
    "strided": lambda z: z[:, ::2],
    "one in front": lambda z: z.unsqueeze(1).transpose(0, 1),
    "scalar": lambda z: z[0, 0],
}


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [*OUTPUTS.values(), *((change, lambda out: out) for change in TENSORS.values())],
    ids=[*OUTPUTS, *TENSORS],
)
def test_the_first_floating_tensor_is_measured_wherever_and_however_it_is(
    pack: Any, unpack: Any
) -> None:
    layer = Net(lambda net, x: pack(x * net.weight), weight=nn.Parameter(inputs(6)))
    model, images = nn.Sequential(layer), draw(6, 6)
    train_by_hand(
        model, lambda *_: unpack(model(images())).abs().square().sum(), n_steps=2,
        optimizer=sgd(model, 0.01), unpack=unpack,
    )  # fmt: skip
