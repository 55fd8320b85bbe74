"""Networks of all sorts: in-place layers, reuse, containers, checkpointing, changes on the way."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from byhand import Output, assert_same_trace, output_row, value
from loops import Net, draw, inputs, loss_of, recorded, sgd, small_net, square, train_by_hand
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gradflow import Recorder, Trace
from gradflow.record import DEFAULT_MEASURES, OUTPUT_MEASURES

WITH_COPIES = [*DEFAULT_MEASURES, "angle_from_start", "grad_cosine"]


def train(
    model: nn.Module, n_steps: int = 3, shape: tuple[int, ...] = (5, 6), **options: Any
) -> Trace:
    """Train with a Recorder, and compare every value."""
    images = draw(*shape)
    return train_by_hand(
        model, lambda *_: (model(images()) - 1).square().mean(), n_steps=n_steps, **options
    )


# -- in place, and the ReLU that is measured with its input ------------------------------------


def with_relu(between: Callable[[Net, Tensor, Tensor], Tensor], inplace: bool) -> Net:
    """A layer, something, and a ReLU."""

    def forward(net: Net, x: Tensor) -> Tensor:
        hidden = net.norm(net.first(x))
        return net.last(between(net, hidden, hidden * 2 - 0.3))

    return Net(
        forward, first=nn.Linear(6, 8), norm=nn.LayerNorm(8), last=nn.Linear(8, 2),
        relu=nn.ReLU(inplace=inplace), other_relu=nn.ReLU(), n_calls=0,
    )  # fmt: skip


def straight(net: Net, x: Tensor, other: Tensor) -> Tensor:
    return net.relu(x)


def changed_between(net: Net, x: Tensor, other: Tensor) -> Tensor:
    return net.relu(x.add_(1))


def fed_by_another(net: Net, x: Tensor, other: Tensor) -> Tensor:
    return net.relu(other) + x


def sometimes_changed(net: Net, x: Tensor, other: Tensor) -> Tensor:
    """Straight, then changed in between, then straight again: what was learnt does not hold."""
    net.n_calls += 1
    return net.relu(x.sub_(0.5) if net.n_calls % 2 == 0 else x)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "between",
    [
        straight,
        changed_between,
        lambda net, x, other: net.relu(x.add_(other)),
        fed_by_another,
        lambda net, x, other: net.other_relu(x) + net.relu(x),  # two on one
        lambda net, x, other: net.relu(net.other_relu(x) - 0.2),  # one behind the other
        lambda net, x, other: net.relu(net.relu(x) - 0.5),  # called twice
        sometimes_changed,
    ],
)
def test_a_relu_is_measured_as_it_is_whatever_stands_before_it(between: Any, inplace: bool) -> None:
    train(with_relu(between, inplace), n_steps=4)


def test_a_relu_straight_behind_its_layer_is_measured_with_it(reads: list[bool]) -> None:
    """Or else the tests above would test no shortcut."""
    for between, n_reads in ((straight, 3), (changed_between, 4), (fed_by_another, 4)):
        reads.clear()
        train(with_relu(between, inplace=False), n_steps=2)
        assert len(reads) == 4 + n_reads, between
        assert reads[4:].count(True) == (4 - n_reads)


def times_two(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output * 2 - 0.3


def plus_one_in_place(module: nn.Module, args: object, output: Tensor) -> None:
    output.add_(1)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("layer", "hook"),  # autograd forbids to change the output of a ReLU in place
    [("norm", times_two), ("norm", plus_one_in_place), ("relu", times_two)],
)
@pytest.mark.parametrize("is_before", [True, False])
def test_a_users_hook_that_changes_an_output(
    hook: Any, inplace: bool, layer: str, is_before: bool
) -> None:
    """The Recorder measures what it is given: the changed output if the user's hook came first."""
    model = with_relu(straight, inplace)
    optimizer = sgd(model)
    x = inputs(5, 6)
    if is_before:
        model.get_submodule(layer).register_forward_hook(hook)
    with Recorder(model, optimizer, measures=OUTPUT_MEASURES) as recorder:
        if not is_before:
            model.get_submodule(layer).register_forward_hook(hook)
        wants = []
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            wants.append(outputs_with_hook(model, x, hook, layer, is_before))
            optimizer.step()
    for step, want in enumerate(wants):
        for site, z in want.items():
            row = output_row([Output(z)])
            for measure in ("output_mean", "output_rms", "output_zero_fraction", "output_max_abs"):
                got = value(recorder.trace, measure, site, step)
                assert got == pytest.approx(row[measure], rel=1e-5, abs=1e-7), (measure, site)


@torch.no_grad()
def outputs_with_hook(
    model: Net, x: Tensor, hook: Any, layer: str, is_before: bool
) -> dict[str, Tensor]:
    """A second plain loop, layer by layer, with functions instead of modules."""
    change = (lambda z: z * 2 - 0.3) if hook is times_two else (lambda z: z + 1)
    seen = {"first": F.linear(x, model.first.weight, model.first.bias)}
    z = F.layer_norm(seen["first"], (8,), model.norm.weight, model.norm.bias)
    for name in ("norm", "relu"):
        z = F.relu(z) if name == "relu" else z
        seen[name] = z
        if layer == name:
            z = change(z)
            seen[name] = z if is_before else seen[name]
    return seen


def test_a_pre_hook_that_replaces_the_input_of_a_relu() -> None:
    model = with_relu(straight, inplace=False)
    model.relu.register_forward_pre_hook(lambda _m, args: (args[0] - 0.4,))
    train(model)


# -- reuse, sharing, freezing ------------------------------------------------------------------


def reused(net: Net, x: Tensor) -> Tensor:
    """One layer and one activation, called so many times."""
    for _ in range(next(net.n_calls)):
        x = net.relu(net.layer(x))
    return x


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("n_calls", [(3, 3, 3, 3), (2, 1, 2, 1)])
def test_reused_modules_are_told_apart_by_their_call(
    accumulate: int, n_calls: tuple[int, ...]
) -> None:
    """Also one that is called less often in some passes."""
    model = Net(reused, layer=nn.Linear(6, 6), relu=nn.ReLU(), n_calls=iter(n_calls))
    trace = train(model, 4 // accumulate, n_passes=accumulate)
    assert [site for site in trace.sites if "." not in site] == [
        "layer", "relu", "layer#1", "relu#1", "layer#2", "relu#2"
    ][: 2 * max(n_calls)]  # fmt: skip


def test_a_module_under_two_names_is_one_site() -> None:
    layer = nn.Linear(6, 6)
    train(nn.Sequential(layer, nn.Tanh(), layer))


def test_parameters_frozen_at_first_and_unfrozen_later() -> None:
    """No gradient while frozen, a gradient and an update from then on."""
    model = small_net()
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: nn.Sequential.forward(model[:5], x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trace = train_by_hand(
        model, lambda step, _: loss_of(model, step), n_steps=4, optimizer=optimizer,
        before=lambda step, _: model[0].requires_grad_(step >= 2),
    )  # fmt: skip
    norms = trace.values["grad_norm"][:, trace.sites.index("0.weight")]
    assert np.isnan(norms).tolist() == [True, True, False, False]


# -- layers of all types ----------------------------------------------------------------------


def test_a_layer_of_integers_has_no_output_to_measure() -> None:
    threshold = Net(lambda net, x: (x > net.level).long(), level=nn.Parameter(torch.zeros(4)))
    model = Net(
        lambda net, x: net.layer(x * net.threshold(x)), threshold=threshold, layer=nn.Linear(4, 2)
    )
    trace = recorded(model, lambda _: square(model))
    assert set(trace.sites) == {"threshold.level", "layer", "layer.weight", "layer.bias"}


def test_an_lstm_and_attention() -> None:
    """Attention calls no forward of its output layer."""

    def forward(net: Net, x: Tensor) -> Tensor:
        hidden, _ = net.lstm(x)
        return net.head(net.attention(hidden, hidden, hidden)[0])

    model = Net(
        forward, lstm=nn.LSTM(6, 8, num_layers=2, batch_first=True),
        attention=nn.MultiheadAttention(8, 2, batch_first=True), head=nn.Linear(8, 2),
    )  # fmt: skip
    train(model, 2, (3, 5, 6))


def test_a_transformer_encoder() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    train(model, shape=(3, 5, 8))


def test_channels_last() -> None:
    model, images = small_net().to(memory_format=torch.channels_last), draw(8, 3, 6, 6)
    train_by_hand(
        model, lambda *_: model(images().to(memory_format=torch.channels_last)).square().mean()
    )


# -- activation checkpointing ------------------------------------------------------------------


def segments(run: Callable[..., Any]) -> Net:
    """Three segments between a first and a last layer; one holds a ReLU that works in place."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        for segment in net.segments:
            x = run(segment, x)
        return net.last(x)

    torch.manual_seed(0)
    parts = [
        nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=i == 1), nn.LayerNorm(6)) for i in range(3)
    ]
    last, first = nn.Linear(6, 2), nn.Linear(6, 6)
    return Net(forward, last=last, first=first, segments=nn.ModuleList(parts))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("interval", [1, 2])
def test_checkpointed_segments_give_the_trace_of_the_plain_network(
    use_reentrant: bool, accumulate: int, interval: int
) -> None:
    """The same values, and the same sites in the order of the forward pass."""
    plain = segments(lambda segment, x: segment(x))
    want = train(plain, 4, n_passes=accumulate, every=interval)
    model, images = segments(partial(checkpoint, use_reentrant=use_reentrant)), draw(5, 6)
    got = recorded(
        model, lambda _: (model(images()) - 1).square().mean(),
        n_steps=4, n_passes=accumulate, every=interval,
    )  # fmt: skip
    assert_same_trace(got, want)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_sequence(use_reentrant: bool) -> None:
    """Which calls the layers, and not the sequence."""
    run = partial(checkpoint_sequential, segments=2, use_reentrant=use_reentrant)
    traces = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(4, 4), nn.Tanh())])
        forward = partial(run, model) if is_checkpointed else model
        x = inputs().requires_grad_()
        loss = lambda _, x=x, forward=forward: forward(input=x).square().mean()  # noqa: E731
        traces.append(recorded(model, loss, n_steps=2))
    assert_same_trace(traces[1], traces[0])


# -- models that change ------------------------------------------------------------------------


def test_a_lazily_built_model() -> None:
    """The Recorder is made before the layers know their sizes."""
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten())
    model.append(nn.LazyLinear(3))
    assert train(model, shape=(8, 3, 6, 6), measures=WITH_COPIES).kinds[0] == "conv"


def test_a_lazy_layer_that_has_not_run_yet_has_no_values() -> None:
    model = nn.ModuleDict({"now": nn.Linear(6, 2), "later": nn.LazyLinear(2)})
    trace = recorded(
        model, lambda step: model["later" if step else "now"](torch.ones(3, 6)).sum(),
        n_steps=3, measures=[*WITH_COPIES, "grad_noise"],
    )  # fmt: skip
    norms = trace.values["weight_norm"][:, trace.sites.index("later.weight")]
    assert np.isnan(norms).tolist() == [True, False, False]


def test_modules_that_are_added_removed_and_replaced() -> None:
    """What comes between two steps has its parameters measured at once, its output as well."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh())
    gone: list[nn.Module] = []

    def change(step: int, optimizer: torch.optim.Optimizer) -> None:
        assert not any(module._forward_hooks for module in gone)
        if step == 1:
            model.append(nn.Linear(6, 6))
        if step == 2:
            gone.append(model[2])
            model[2] = nn.Linear(6, 6)
        if step == 3:
            del model[1]
        optimizer.param_groups[0]["params"] = list(model.parameters())

    train(model, 5, before=change)


def test_parameters_that_are_replaced() -> None:
    """Pruning, quantisation and low-rank methods put others in their place."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))

    def change(step: int, optimizer: torch.optim.Optimizer) -> None:
        if step == 1:
            model[0].weight = nn.Parameter(torch.randn(6, 6))
            model[2] = nn.Linear(6, 2, bias=False)
            optimizer.param_groups[0]["params"] = list(model.parameters())

    train(model, before=change)


# -- memory ------------------------------------------------------------------------------------


def test_no_output_and_no_gradient_is_kept_alive() -> None:
    model = small_net()
    optimizer = sgd(model)
    alive: list[weakref.ref[Tensor]] = []

    def remember(module: nn.Module, args: object, output: Tensor) -> None:
        alive.append(weakref.ref(output))
        output.register_hook(lambda grad: alive.append(weakref.ref(grad)))

    for module in model:
        module.register_forward_hook(remember)
    gc.disable()  # what is freed must be freed at once, without the collector
    try:
        with Recorder(model, optimizer) as recorder:
            for seed in range(3):
                loss = loss_of(model, seed)
                loss.backward()
                del loss
                assert len(alive) == (seed + 1) * 10
                assert not [one for one in alive if one() is not None]
                optimizer.step()
                optimizer.zero_grad()
            pending = recorder._buffer.pending
            assert len(pending) == 3
            numbers = [v for v in vars(pending[0]).values() if isinstance(v, Tensor)]
            assert len(numbers) <= 5, "few tensors, however many layers"
            assert len({id(step.layout) for step in pending}) == 1
    finally:
        gc.enable()
