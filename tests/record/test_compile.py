"""torch.compile: a Recorder made before sees what it sees without; one made after says so."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from byhand import (
    ByHand,
    assert_same_trace,
    loss_of,
    plain_step,
    said,
    sgd,
    small_net,
    train_by_hand,
)
from torch import Tensor, nn

from gradflow import Recorder, Trace
from gradflow.record import DEFAULT_MEASURES, PARAMETER_MEASURES

pytestmark = [
    # torch 2.11 warns of itself when torch.compile is imported.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    # The compiler looks at `.grad` of what it hands over between two of its graphs.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def _without_old_graphs() -> None:
    torch.compiler.reset()


class Branches(nn.Module):
    """Reused layers, an in-place ReLU and `+=`: what graph breaks could upset."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for _ in range(2):
            out = self.norm(self.conv(x))
            out += x
            x = self.relu(out)
        return self.head(x.flatten(1))


def plain(model: nn.Module) -> Callable[..., Any]:
    return model


def by_function(model: nn.Module) -> Callable[..., Any]:
    return torch.compile(model, backend="aot_eager")


def by_method(model: nn.Module) -> Callable[..., Any]:
    model.compile(backend="aot_eager")
    return model


def train(
    make: Callable[[], nn.Module],
    compiled: Callable[[nn.Module], Callable[..., Any]],
    interval: int = 1,
    accumulate: int = 1,
    n_steps: int = 4,
    measures: Any = DEFAULT_MEASURES,
) -> Trace:
    model = make()
    optimizer = sgd(model)
    with Recorder(model, optimizer, every=interval, measures=measures) as recorder:
        run = compiled(model)
        for step in range(n_steps):
            optimizer.zero_grad()
            for part in range(accumulate):
                loss_of(run, 10 * step + part).backward()  # type: ignore[arg-type]
            optimizer.step()
    return recorder.trace


@pytest.mark.parametrize(
    ("compiled", "interval", "accumulate"), [(by_function, 1, 2), (by_method, 2, 1)]
)
def test_a_compiled_network_has_the_trace_of_the_plain_one(
    compiled: Any, interval: int, accumulate: int
) -> None:
    got = train(Branches, compiled, interval, accumulate)
    want = train(Branches, plain, interval, accumulate)
    assert_same_trace(got, want)


def test_the_plain_network_equals_plain_autograd() -> None:
    """What the compiled ones are compared with."""
    model = Branches()
    train_by_hand(model, lambda step, _: loss_of(model, step))


def test_only_some_steps_are_recorded_and_the_others_cost_no_pass() -> None:
    """A compiled graph may keep the hooks of the step it was made in."""
    model = small_net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, every=3) as recorder:
        run = by_method(model)
        for step in range(7):
            optimizer.zero_grad()
            loss_of(run, step).backward()  # type: ignore[arg-type]
            assert recorder._outputs is not None
            assert recorder._outputs.backward.n_counted == step // 3 + 1
            optimizer.step()
    assert recorder.trace.steps.tolist() == [0, 3, 6]


@pytest.mark.parametrize("interval", [1, 2])
def test_parameters_under_compile(interval: int) -> None:
    model = small_net()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(compiled, optimizer, measures=PARAMETER_MEASURES, every=interval) as recorder:
        for seed in range(3):
            optimizer.zero_grad()
            loss_of(compiled, seed).backward()
            with hand.step():
                optimizer.step()
    hand.compare(recorder.trace, steps=range(0, 3, interval))


def test_a_model_that_was_compiled_in_place_and_ran_is_recorded() -> None:
    model = small_net()
    optimizer = sgd(model)
    run = by_method(model)
    for step in range(2):
        plain_step(run, optimizer, 10 * step)
    with Recorder(model, optimizer, first_step=2, every=2) as recorder:
        for step in range(2, 5):
            plain_step(run, optimizer, 10 * step)
    got, want = recorder.trace, train(small_net, plain, n_steps=5)
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
    loss_of(run).backward()  # type: ignore[arg-type]
    with Recorder(model, optimizer, every=interval) as recorder:
        loss_of(run).backward()  # type: ignore[arg-type]
        optimizer.step()
    check_outputs_were_missed(recorder.trace, caplog)


def test_layers_that_are_called_without_their_hooks_are_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = small_net()
    optimizer = sgd(model)
    with Recorder(model, optimizer) as recorder:
        for _ in range(2):
            loss_of(lambda x: nn.Sequential.forward(_without_hooks(model), x)).backward()  # type: ignore[arg-type]
            optimizer.step()
    check_outputs_were_missed(recorder.trace, caplog)


def test_a_layer_that_is_run_by_the_graph_of_one_like_it_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The compiler kept the graph of another network's last layer, which had no hook."""
    torch.compiler.reset()
    for records in (False, True):
        model = small_net()
        optimizer = sgd(model)
        recorder = Recorder(model, optimizer) if records else None
        head = torch.compile(model[4], backend="eager")
        for _ in range(2):
            loss_of(lambda x, head=head, model=model: head(model[:4](x))).backward()  # type: ignore[arg-type, misc]
            optimizer.step()
    assert recorder is not None
    recorder.close()
    (said,) = [r.getMessage() for r in caplog.records if r.name == "gradflow"]
    assert "does not take the output of '4': parameters there have gradients" in said
    assert "4" not in recorder.trace.sites
    torch.compiler.reset()


def test_a_compiled_backward_pass_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Compiled autograd calls no end of a pass: outputs are not taken, parameters are."""
    model = small_net()
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(model, optimizer) as recorder:
        loss = loss_of(model)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            loss.backward()
        with hand.step():
            optimizer.step()
    got = recorder.trace.select("grad_norm")
    for name, row in hand._parameters[0].items():
        assert got.values[0, got.sites.index(name)] == pytest.approx(row["grad_norm"], rel=1e-5)
    assert recorder.trace.select("output_grad_norm").sites == ()
    (said,) = [r.getMessage() for r in caplog.records if r.name == "gradflow"]
    assert "outputs in a step" in said


def check_outputs_were_missed(trace: Trace, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and the parameters are recorded."""
    (sentence,) = said(caplog)
    assert "no layer ran through its hooks" in sentence
    assert "compiled before the Recorder was made" in sentence
    assert trace.select("output_grad_norm").sites == ()
    assert np.isfinite(trace.select("grad_norm").values).all()


def _without_hooks(model: nn.Sequential) -> list[Callable[[Tensor], Tensor]]:
    return [layer.forward for layer in model]


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
            assert recorder._outputs is not None
            assert n_steps == len(recorder.trace) == 2
            assert recorder._outputs.backward.n_counted == 2
        models.append(model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)
