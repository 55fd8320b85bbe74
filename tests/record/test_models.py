"""Networks of all sorts: in-place layers, reuse, containers, checkpointing, changes on the way."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from byhand import assert_same_trace, draw, loss_of, output_row, sgd, small_net, train_by_hand
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gradflow import Recorder, Trace
from gradflow.record import DEFAULT_MEASURES, OUTPUT_MEASURES, outputs

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


class WithRelu(nn.Module):
    """A layer, something, and a ReLU."""

    def __init__(self, between: Callable[["WithRelu", Tensor, Tensor], Tensor], inplace: bool):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.relu, self.other_relu = nn.ReLU(inplace=inplace), nn.ReLU()
        self.last = nn.Linear(8, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x))
        return self.last(self.between(self, hidden, hidden * 2 - 0.3))


def straight(net: WithRelu, x: Tensor, other: Tensor) -> Tensor:
    return net.relu(x)


def changed_between(net: WithRelu, x: Tensor, other: Tensor) -> Tensor:
    x.add_(1)
    return net.relu(x)


def added_between(net: WithRelu, x: Tensor, other: Tensor) -> Tensor:
    x += other
    return net.relu(x)


def fed_by_another(net: WithRelu, x: Tensor, other: Tensor) -> Tensor:
    return net.relu(other) + x


def two_on_one(net: WithRelu, x: Tensor, other: Tensor) -> Tensor:
    return net.other_relu(x) + net.relu(x)


def one_behind_the_other(net: WithRelu, x: Tensor, other: Tensor) -> Tensor:
    return net.relu(net.other_relu(x) - 0.2)


def called_twice(net: WithRelu, x: Tensor, other: Tensor) -> Tensor:
    return net.relu(net.relu(x) - 0.5)


def sometimes_changed(net: WithRelu, x: Tensor, other: Tensor) -> Tensor:
    """Straight, then changed in between, then straight again: what was learnt does not hold."""
    net.n_calls = getattr(net, "n_calls", 0) + 1
    return net.relu(x.sub_(0.5) if net.n_calls % 2 == 0 else x)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "between",
    [
        straight,
        changed_between,
        added_between,
        fed_by_another,
        two_on_one,
        one_behind_the_other,
        called_twice,
        sometimes_changed,
    ],
)
def test_a_relu_is_measured_as_it_is_whatever_stands_before_it(between: Any, inplace: bool) -> None:
    train(WithRelu(between, inplace), n_steps=4)


def test_a_relu_straight_behind_its_layer_is_measured_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or else the tests above would test no shortcut."""
    reads = []
    real = outputs.output_sums

    def counted(*args: Any, **kwargs: Any) -> Any:
        reads.append(kwargs["relu"])
        return real(*args, **kwargs)

    monkeypatch.setattr(outputs, "output_sums", counted)
    for between, n_reads in ((straight, 3), (changed_between, 4), (fed_by_another, 4)):
        reads.clear()
        train(WithRelu(between, inplace=False), n_steps=2)
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
    model = WithRelu(straight, inplace)
    optimizer = sgd(model)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
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
    trace = recorder.trace
    for index, want in enumerate(wants):
        for site, z in want.items():
            row = output_row([_Seen(z)])
            for measure in ("output_mean", "output_rms", "output_zero_fraction", "output_max_abs"):
                got = trace.values[measure][index, trace.sites.index(site)]
                assert got == pytest.approx(row[measure], rel=1e-5, abs=1e-7), (measure, site)


@torch.no_grad()
def outputs_with_hook(
    model: WithRelu, x: Tensor, hook: Any, layer: str, is_before: bool
) -> dict[str, Tensor]:
    """A second plain loop, layer by layer, with functions instead of modules."""
    F = nn.functional
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


class _Seen:
    def __init__(self, z: Tensor) -> None:
        self.z, self.grad = z.double(), None

    def channels_alive(self) -> Tensor:
        return (self.z != 0).any(0)


def test_a_pre_hook_that_replaces_the_input_of_a_relu() -> None:
    model = WithRelu(straight, inplace=False)
    model.relu.register_forward_pre_hook(lambda _m, args: (args[0] - 0.4,))
    train(model)


# -- reuse, sharing, freezing ------------------------------------------------------------------


class Reused(nn.Module):
    """One layer and one activation, called three times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.relu = nn.Linear(6, 6), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.relu(self.layer(x))
        return x


@pytest.mark.parametrize("accumulate", [1, 2])
def test_reused_modules_are_told_apart_by_their_call(accumulate: int) -> None:
    trace = train(Reused(), 2, n_passes=accumulate)
    assert [site for site in trace.sites if "." not in site] == [
        "layer", "relu", "layer#1", "relu#1", "layer#2", "relu#2"
    ]  # fmt: skip


def test_a_module_that_is_called_less_often_in_some_steps() -> None:
    class Skips(Reused):
        n = 0

        def forward(self, x: Tensor) -> Tensor:
            self.n += 1
            for _ in range(1 + self.n % 2):
                x = self.relu(self.layer(x))
            return x

    train(Skips(), n_steps=4)


def test_shared_parameters_have_the_gradient_of_all_their_uses() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    train(model)


def test_a_module_under_two_names_is_one_site() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    train(nn.Sequential(layer, nn.Tanh(), layer))


def test_parameters_frozen_at_first_and_unfrozen_later() -> None:
    """No gradient while frozen, a gradient and an update from then on."""
    model = small_net()
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: nn.Sequential.forward(model[:5], x)  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trace = train_by_hand(
        model, lambda step, _: loss_of(model, step), n_steps=4, optimizer=optimizer,
        before=lambda step, _: model[0].requires_grad_(step >= 2),
    )  # fmt: skip
    norms = trace.values["grad_norm"][:, trace.sites.index("0.weight")]
    assert np.isnan(norms).tolist() == [True, True, False, False]


# -- outputs of all types ----------------------------------------------------------------------


@dataclass
class Answer:
    count: int
    hidden: Tensor


class Packs(nn.Module):
    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight, self.pack = nn.Parameter(torch.tensor([3.0, 4.0, -1.0])), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(x * self.weight)


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda z: (z, None), lambda out: out[0]),
        (lambda z: (None, torch.ones(2, dtype=torch.long), z, z * 3), lambda out: out[2]),
        (lambda z: {"mask": z > 0, "hidden": z, "more": z + 1}, lambda out: out["hidden"]),
        (lambda z: Answer(3, z), lambda out: out.hidden),
        (lambda z: ([{"a": (None, Answer(1, z))}], z + 1), lambda out: out[0][0]["a"][1].hidden),
        (lambda z: torch.complex(z, 2 * z), lambda out: out),
        (lambda z: z.to(torch.float64), lambda out: out),
        (lambda z: z.unsqueeze(1).transpose(0, 1), lambda out: out),
    ],
    ids=["tuple", "integers first", "dict", "dataclass", "nested", "complex", "double", "strided"],
)  # fmt: skip
def test_the_first_floating_tensor_is_measured_wherever_it_is(pack: Any, unpack: Any) -> None:
    model, images = nn.Sequential(Packs(pack)), draw(5, 3)
    train_by_hand(
        model, lambda *_: unpack(model(images())).abs().square().sum(), n_steps=2,
        optimizer=sgd(model, 0.01), unpack=unpack,
    )  # fmt: skip


def test_a_layer_of_integers_has_no_output_to_measure() -> None:
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.threshold, self.layer = Threshold(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * self.threshold(x))

    class Threshold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            return (x > self.level).long()

    model = Classes()
    optimizer = sgd(model)
    with Recorder(model, optimizer) as recorder:
        model(torch.randn(5, 6)).sum().backward()
        optimizer.step()
    assert set(recorder.trace.sites) == {
        "threshold.level", "layer", "layer.weight", "layer.bias"
    }  # fmt: skip


def test_an_lstm_and_attention() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden, _ = self.lstm(x)
            mixed, _ = self.attention(hidden, hidden, hidden)
            return self.head(mixed)

    train(Net(), 2, (3, 5, 6))  # attention calls no forward of its output layer


def test_a_transformer_encoder() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    train(model, shape=(3, 5, 8))


def test_channels_last() -> None:
    model, images = small_net().to(memory_format=torch.channels_last), draw(8, 3, 6, 6)
    train_by_hand(
        model, lambda *_: model(images().to(memory_format=torch.channels_last)).square().mean()
    )


# -- activation checkpointing ------------------------------------------------------------------


class Segments(nn.Module):
    """Three segments between a first and a last layer; one holds a ReLU that works in place."""

    def __init__(self, run: Callable[..., Any] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last, self.first = nn.Linear(6, 2), nn.Linear(6, 6)
        self.segments = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=i == 1), nn.LayerNorm(6))
            for i in range(3)
        )
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for segment in self.segments:
            x = segment(x) if self.run is None else self.run(segment, x)
        return self.last(x)


def train_segments(run: Callable[..., Any] | None, accumulate: int, interval: int) -> Trace:
    return train(Segments(run), 4, n_passes=accumulate, every=interval, compare=run is None)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("interval", [1, 2])
def test_checkpointed_segments_give_the_trace_of_the_plain_network(
    use_reentrant: bool, accumulate: int, interval: int
) -> None:
    """The same values, and the same sites in the order of the forward pass."""
    run = partial(checkpoint, use_reentrant=use_reentrant)
    got = train_segments(run, accumulate, interval)
    assert_same_trace(got, train_segments(None, accumulate, interval))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_sequence(use_reentrant: bool) -> None:
    traces = []
    for n_segments in (0, 2):
        torch.manual_seed(0)
        layers = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(6, 6), nn.Tanh())])
        optimizer = sgd(layers)
        x = torch.randn(5, 6, requires_grad=True)
        with Recorder(layers, optimizer) as recorder:
            for _ in range(2):
                optimizer.zero_grad()
                if n_segments:  # calls the layers, not the sequence
                    out = checkpoint_sequential(layers, n_segments, x, use_reentrant=use_reentrant)
                else:
                    out = layers(x)
                out.square().mean().backward()
                optimizer.step()
        traces.append(recorder.trace)
    assert_same_trace(traces[1], traces[0])


# -- models that change ------------------------------------------------------------------------


def test_a_lazily_built_model() -> None:
    """The Recorder is made before the layers know their sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten())
    model.append(nn.LazyLinear(3))
    assert train(model, shape=(8, 3, 6, 6), measures=WITH_COPIES).kinds[0] == "conv"


def test_a_lazy_layer_that_has_not_run_yet_has_no_values() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"now": nn.Linear(6, 2), "later": nn.LazyLinear(2)})
    optimizer = sgd(model)
    measures = [*WITH_COPIES, "grad_noise"]
    with Recorder(model, optimizer, measures=measures) as recorder:
        for name in ("now", "later", "later"):
            optimizer.zero_grad()
            model[name](torch.ones(3, 6)).sum().backward()
            optimizer.step()
    trace = recorder.trace
    norms = trace.values["weight_norm"][:, trace.sites.index("later.weight")]
    assert np.isnan(norms).tolist() == [True, False, False]


def test_modules_that_are_added_removed_and_replaced() -> None:
    """What comes between two steps has its parameters measured at once, its output as well."""
    torch.manual_seed(0)
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
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))

    def change(step: int, optimizer: torch.optim.Optimizer) -> None:
        if step == 1:
            model[0].weight = nn.Parameter(torch.randn(6, 6))
            model[2] = nn.Linear(6, 2, bias=False)
            optimizer.param_groups[0]["params"] = list(model.parameters())

    train(model, before=change)


def test_weights_computed_by_a_parametrization() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    optimizer = sgd(model)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    with Recorder(model, optimizer) as recorder:
        (z := nn.functional.linear(x, model[0].weight, model[0].bias)).retain_grad()
        want_rms = z.detach().double().square().mean().sqrt().item()
        model(x).square().mean().backward()
        grads = {name: p.grad.double().norm().item() for name, p in model.named_parameters()}
        optimizer.step()
    trace = recorder.trace
    for name, want in grads.items():
        got = trace.values["grad_norm"][0, trace.sites.index(name)]
        assert got == pytest.approx(want, rel=1e-5)
    got = trace.values["output_rms"][0, trace.sites.index("0")]
    assert got == pytest.approx(want_rms, rel=1e-5)


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
