"""What feeds what, of networks whose graph can be drawn by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Net, recorded
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from gradflow import Trace
from gradflow.record.paths import weights_of


def traced(model: nn.Module, x: Tensor, **options: Any) -> Trace:
    def loss(_: int) -> Tensor:
        outputs = model(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum(output.square().mean() for output in outputs)

    return recorded(model, loss, **options)


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def test_in_place_operations_do_not_break_the_chain() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        y = net.b(x)
        y += x
        return net.c(net.relu(y))

    net = Net(forward, c=linear(), b=linear(), a=linear(), relu=nn.ReLU(inplace=True))
    assert traced(net, torch.randn(2, 4)).feeds == {
        "a": ("a.weight",),
        "b": ("a", "b.weight"),
        "relu": ("a", "b"),
        "c": ("relu", "c.weight"),
    }


def test_towers_and_heads_are_apart_and_branches_meet() -> None:
    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        trunk = net.trunk(x)
        joined = torch.cat([net.left(trunk), net.right(trunk)], 1)
        return net.head(joined[:, :4] + joined[:, 4:]), net.tower(x)

    names = ("trunk", "left", "right", "head", "tower")
    net = Net(forward, **{name: linear() for name in names})
    feeds = traced(net, torch.randn(2, 4)).feeds
    assert feeds is not None
    assert feeds["left"][:-1] == feeds["right"][:-1] == ("trunk",)
    assert feeds["head"] == ("left", "right", "head.weight")
    assert feeds["tower"] == ("tower.weight",)


def test_every_call_of_a_cell_follows_on_the_one_before() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        state = None
        for _ in range(3):
            state = net.cell(x, state)
        return state[1]

    feeds = traced(Net(forward, cell=nn.LSTMCell(4, 4)), torch.randn(2, 4)).feeds
    weights = ("cell.weight_ih", "cell.weight_hh")
    assert feeds == {
        "cell": weights, "cell#1": ("cell", *weights), "cell#2": ("cell#1", *weights)
    }  # fmt: skip


def test_parameters_without_a_module_stand_where_they_are_used() -> None:
    """A weight and a position of its own, and a child, which uses neither."""

    def own() -> Net:
        return Net(
            lambda net, x: net.act((x + net.position) @ net.kernel),
            kernel=nn.Parameter(torch.randn(4, 4)), position=nn.Parameter(torch.randn(2, 4)),
            act=nn.Tanh(),
        )  # fmt: skip

    feeds = traced(nn.Sequential(own(), own()), torch.randn(2, 4)).feeds
    assert feeds == {
        "0.act": ("0.kernel",), "0": ("0.act",), "1.act": ("0", "1.kernel"), "1": ("1.act",)
    }  # fmt: skip


def test_parametrized_attention_and_recurrent_weights() -> None:
    def forward(net: Net, x: Tensor) -> object:
        return net.normed(net.rnn(net.attention(x, x, x)[0])[1])

    net = Net(
        forward, attention=nn.MultiheadAttention(4, 2), rnn=nn.GRU(4, 4, 2),
        normed=weight_norm(linear()),
    )  # fmt: skip
    assert traced(net, torch.randn(3, 2, 4)).feeds == {
        "attention": ("attention.in_proj_weight", "attention.out_proj.weight"),
        "rnn": ("attention", *(f"rnn.weight_{way}_l{i}" for i in (0, 1) for way in ("ih", "hh"))),
        "normed": ("rnn", "normed.parametrizations.weight.original1"),
    }


def test_a_layer_of_one_unit_has_a_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4), nn.LayerNorm(4))
    assert weights_of(dict(model.named_parameters())) == {"0": ("0.weight",), "1": ("1.weight",)}


def test_a_second_pass_does_not_follow_on_the_first() -> None:
    """Called on its own output, as in a recurrence over passes or a penalty."""
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    feeds = recorded(model, lambda _: model(model(torch.randn(2, 4))).mean()).feeds
    assert feeds == {"0": ("0.weight",), "1": ("0",), "2": ("1", "2.weight")}


def test_a_graph_that_was_cut_into_pieces_is_not_had() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.b(checkpoint(net.a, x.requires_grad_(), use_reentrant=True))

    assert traced(Net(forward, a=linear(), b=linear()), torch.randn(2, 4)).feeds is None


def test_what_comes_later_is_added() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.b(x) if net.deep else x

    def loss(step: int) -> Tensor:
        net.deep = step > 0
        return net(torch.randn(2, 4)).mean()

    net = Net(forward, a=linear(), b=linear())
    feeds = recorded(net, loss, n_steps=3).feeds
    assert feeds == {"a": ("a.weight",), "b": ("a", "b.weight")}


@pytest.mark.parametrize("is_known", [True, False])
def test_it_is_kept_in_the_files(tmp_path: Path, is_known: bool) -> None:
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    trace = traced(model, torch.randn(2, 4), folder=tmp_path)
    assert trace.feeds == {"0": ("0.weight",), "1": ("0",), "2": ("1", "2.weight")}
    if not is_known:  # as in the records of an older version
        import pyarrow.parquet as pq

        for part in tmp_path.glob("records/part-*"):
            pq.write_table(pq.read_table(part).replace_schema_metadata(), part)
        assert Trace.load(tmp_path).feeds is None
