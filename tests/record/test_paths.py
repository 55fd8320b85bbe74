"""What feeds what, of networks whose graph can be drawn by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from gradflow import Recorder, Trace
from gradflow.record.paths import weights_of


def recorded(model: nn.Module, *inputs: Tensor, folder: Path | None = None) -> Trace:
    with Recorder(model, None, folder=folder) as recorder:
        outputs = model(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.square().mean() for output in outputs).backward()  # type: ignore[union-attr]
        with recorder.around_step():
            pass
    return recorder.trace


class Net(nn.Module):
    """Children by name, and a forward pass of its own."""

    def __init__(self, forward: Callable[["Net", Tensor], object], **children: nn.Module) -> None:
        super().__init__()
        self._run = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> object:
        return self._run(self, x)


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def test_in_place_operations_do_not_break_the_chain() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        y = net.b(x)
        y += x
        return net.c(net.relu(y))  # type: ignore[no-any-return]

    net = Net(forward, c=linear(), b=linear(), a=linear(), relu=nn.ReLU(inplace=True))
    assert recorded(net, torch.randn(2, 4)).feeds == {
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
    feeds = recorded(net, torch.randn(2, 4)).feeds
    assert feeds is not None
    assert feeds["left"][:-1] == feeds["right"][:-1] == ("trunk",)
    assert feeds["head"] == ("left", "right", "head.weight")
    assert feeds["tower"] == ("tower.weight",)


def test_every_call_of_a_cell_follows_on_the_one_before() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        state = None
        for _ in range(3):
            state = net.cell(x, state)
        return state[1]  # type: ignore[index]

    feeds = recorded(Net(forward, cell=nn.LSTMCell(4, 4)), torch.randn(2, 4)).feeds
    weights = ("cell.weight_ih", "cell.weight_hh")
    assert feeds == {
        "cell": weights, "cell#1": ("cell", *weights), "cell#2": ("cell#1", *weights)
    }  # fmt: skip


def test_parameters_without_a_module_stand_where_they_are_used() -> None:
    class Own(nn.Module):
        """A weight and a position of its own, and a child, which uses neither."""

        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 4))
            self.position = nn.Parameter(torch.randn(2, 4))
            self.act = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.act((x + self.position) @ self.kernel)
            return output

    feeds = recorded(nn.Sequential(Own(), Own()), torch.randn(2, 4)).feeds
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
    assert recorded(net, torch.randn(3, 2, 4)).feeds == {
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
    with Recorder(model, None) as recorder:
        model(model(torch.randn(2, 4))).mean().backward()
        with recorder.around_step():
            pass
    assert recorder.trace.feeds == {"0": ("0.weight",), "1": ("0",), "2": ("1", "2.weight")}


def test_a_graph_that_was_cut_into_pieces_is_not_had() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.b(checkpoint(net.a, x.requires_grad_(), use_reentrant=True))  # type: ignore[no-any-return]

    assert recorded(Net(forward, a=linear(), b=linear()), torch.randn(2, 4)).feeds is None


def test_what_comes_later_is_added() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.b(x) if net.deep else x  # type: ignore[no-any-return]

    net = Net(forward, a=linear(), b=linear())
    with Recorder(net, None) as recorder:
        for net.deep in (False, True, True):  # type: ignore[assignment]
            net(torch.randn(2, 4)).mean().backward()
            with recorder.around_step():
                pass
    assert recorder.trace.feeds == {"a": ("a.weight",), "b": ("a", "b.weight")}


@pytest.mark.parametrize("is_known", [True, False])
def test_it_is_kept_in_the_files(tmp_path: Path, is_known: bool) -> None:
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    trace = recorded(model, torch.randn(2, 4), folder=tmp_path)
    assert trace.feeds == {"0": ("0.weight",), "1": ("0",), "2": ("1", "2.weight")}
    if not is_known:  # as in the records of an older version
        import pyarrow.parquet as pq

        for part in tmp_path.glob("records/part-*"):
            pq.write_table(pq.read_table(part).replace_schema_metadata(), part)
        assert Trace.load(tmp_path).feeds is None
