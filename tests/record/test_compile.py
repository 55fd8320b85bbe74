"""torch.compile: a Recorder made before sees what it sees without; one made after says so."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from byhand import ByHand, assert_same_trace, said
from loops import Net, loss_of, plain_step, recorded, sgd, small_net, train_by_hand, watched
from torch import Tensor, nn

from gradflow import Recorder, Trace
from gradflow.record import PARAMETER_MEASURES

pytestmark = [
    # torch 2.11 warns of itself when torch.compile is imported.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    # The compiler looks at `.grad` of what it hands over between two of its graphs.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def _without_old_graphs() -> None:
    torch.compiler.reset()


def branches() -> Net:
    """Reused layers, an in-place ReLU and `+=`: what graph breaks could upset."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.relu(net.stem(x))
        for _ in range(2):
            out = net.norm(net.conv(x))
            out += x
            x = net.relu(out)
        return net.head(x.flatten(1))

    torch.manual_seed(0)
    return Net(
        forward, stem=nn.Conv2d(3, 4, 3, padding=1), relu=nn.ReLU(inplace=True),
        conv=nn.Conv2d(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4), head=nn.Linear(4 * 36, 3),
    )  # fmt: skip


def by_function(model: nn.Module) -> Callable[..., Any]:
    return torch.compile(model, backend="aot_eager")


def by_method(model: nn.Module) -> Callable[..., Any]:
    model.compile(backend="aot_eager")
    return model


@pytest.mark.parametrize(
    ("compiled", "interval", "accumulate"), [(by_function, 1, 2), (by_method, 2, 1)]
)
def test_a_compiled_network_has_the_trace_of_the_plain_one(
    compiled: Any, interval: int, accumulate: int
) -> None:
    model, runs = branches(), []

    def loss(index: int) -> Tensor:
        if not runs:  # after the Recorder was made
            runs.append(compiled(model))
        return loss_of(runs[0], index)

    options = {"n_steps": 4, "n_passes": accumulate, "every": interval}
    got, plain = recorded(model, loss, **options), branches()
    want = train_by_hand(
        plain, lambda step, part: loss_of(plain, step * accumulate + part), **options
    )
    assert_same_trace(got, want)


def test_only_some_steps_are_recorded_and_the_others_cost_no_pass() -> None:
    """A compiled graph may keep the hooks of the step it was made in."""
    model = small_net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, every=3) as recorder:
        run = by_method(model)
        for step in range(7):
            optimizer.zero_grad()
            loss_of(run, step).backward()
            assert recorder._outputs.backward.n_counted == step // 3 + 1
            optimizer.step()
    assert recorder.trace.steps.tolist() == [0, 3, 6]


@pytest.mark.parametrize("interval", [1, 2])
def test_parameters_under_compile(interval: int) -> None:
    compiled = torch.compile(small_net(), backend="aot_eager")
    model = compiled._orig_mod
    hand = ByHand(model, sgd(model))
    with Recorder(
        compiled, hand.optimizer, measures=PARAMETER_MEASURES, every=interval
    ) as recorder:
        for seed in range(3):
            hand.zero()
            loss_of(compiled, seed).backward()
            hand.update()
    hand.compare(recorder.trace, steps=range(0, 3, interval))


def test_a_model_that_was_compiled_in_place_and_ran_is_recorded() -> None:
    model, plain = small_net(), small_net()
    optimizer = sgd(model)
    run = by_method(model)
    for seed in range(2):
        plain_step(run, optimizer, seed)
    with Recorder(model, optimizer, first_step=2, every=2) as recorder:
        for seed in range(2, 5):
            plain_step(run, optimizer, seed)
    got = recorder.trace
    want = train_by_hand(plain, lambda step, _: loss_of(plain, step), n_steps=5)
    assert got.sites == want.sites
    assert got.steps.tolist() == [2, 4]
    for measure in got.measures:
        np.testing.assert_allclose(
            got.values[measure], want.values[measure][2::2], rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("interval", [1, 2])
def test_a_compiled_function_that_ran_before_is_noticed(
    interval: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its graph has no hooks: never records without outputs, and without a word."""
    model = small_net()
    optimizer = sgd(model)
    run = by_function(model)
    loss_of(run).backward()
    with Recorder(model, optimizer, every=interval) as recorder:
        loss_of(run).backward()
        optimizer.step()
    check_outputs_were_missed(recorder.trace, caplog)


def test_layers_that_are_called_without_their_hooks_are_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def forward(x: Tensor) -> Tensor:
        for layer in model:
            x = layer.forward(x)
        return x

    model = small_net()
    check_outputs_were_missed(recorded(model, lambda _: loss_of(forward), n_steps=2), caplog)


def test_a_layer_that_is_run_by_the_graph_of_one_like_it_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The compiler kept the graph of another network's last layer, which had no hook."""

    def loss(_: int) -> Tensor:
        head = torch.compile(model[4], backend="eager")
        return loss_of(lambda x: head(model[:4](x)))

    model = small_net()
    for _ in range(2):
        loss(0).backward()
    model = small_net()
    trace = recorded(model, loss, n_steps=2)
    (sentence,) = said(caplog)
    assert "does not take the output of '4': parameters there have gradients" in sentence
    assert "4" not in trace.sites


def test_a_compiled_backward_pass_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Compiled autograd calls no end of a pass: outputs are not taken, parameters are."""
    model = small_net()
    with watched(model) as hand:
        loss = loss_of(model)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            loss.backward()
        hand.update()
    (sentence,) = said(caplog)
    assert "outputs in a step" in sentence


def check_outputs_were_missed(trace: Trace, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and the parameters are recorded."""
    (sentence,) = said(caplog)
    assert "no layer ran through its hooks" in sentence
    assert "compiled before the Recorder was made" in sentence
    assert trace.select("output_grad_norm").sites == ()
    assert np.isfinite(trace.select("grad_norm").values).all()


def test_a_closed_recorder_leaves_a_compiled_model_as_it_was() -> None:
    models = []
    for record in (True, False):
        model = small_net()
        optimizer = sgd(model)
        recorder = Recorder(model, optimizer) if record else None
        run = by_function(model)
        for step in range(4):
            if step == 2 and recorder is not None:
                recorder.close()
                n_steps = len(recorder.trace)
            plain_step(run, optimizer, step)
        if recorder is not None:
            assert n_steps == len(recorder.trace) == 2
            assert recorder._outputs.backward.n_counted == 2
        models.append(model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)
