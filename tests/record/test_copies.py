"""Copies, files, several Recorders, threads, chosen measures, and going on from a checkpoint."""

import copy
import io
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byhand import ByHand, assert_same_trace, loss_of, plain_step, sgd, small_net
from byhand import watched_step as train_step
from torch import nn

from gradflow import Recorder, Trace
from gradflow.record import DEFAULT_MEASURES, MEASURES, OUTPUT_MEASURES, PARAMETER_MEASURES

ALL_BUT_ADAM = [name for name in MEASURES if not name.startswith("adam")]


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
@pytest.mark.parametrize("measures", [DEFAULT_MEASURES, ALL_BUT_ADAM], ids=["default", "all"])
def test_a_copy_of_a_watched_model_is_not_watched(copied: Any, measures: Any) -> None:
    """An EMA, a checkpoint of the whole model, a target network."""
    model = small_net()
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(model, optimizer, measures=measures) as recorder:
        train_step(hand, optimizer, 0)
        other = copied(model)
        other_optimizer = sgd(other)
        for seed in (1, 2):
            optimizer.zero_grad()
            with hand.forward():
                loss = loss_of(model, seed)
            loss_of(other, 5).backward()
            loss.backward()
            loss_of(other, 6).backward()
            other_optimizer.step()
            other_optimizer.zero_grad()
            with hand.step():
                optimizer.step()
    if measures is DEFAULT_MEASURES:
        hand.compare(recorder.trace)
    else:
        norms = recorder.trace.values["grad_noise"]
        assert np.isnan(norms).all(), "one micro-batch per step has no noise"
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_saved_while_recording_loads_as_without_gradflow() -> None:
    """Its file names nothing of gradflow, and equals that of a model that was never watched."""
    files = []
    for records in (False, True):
        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        model.load_state_dict({"0.weight": torch.eye(3), "0.bias": torch.ones(3)})
        recorder = Recorder(model, sgd(model)) if records else None
        file = io.BytesIO()
        torch.save(model, file)
        files.append(file.getvalue())
        if recorder is not None:
            recorder.close()
    assert b"gradflow" not in files[1]
    assert len(files[0]) == len(files[1])
    with torch.serialization.safe_globals([nn.Sequential, nn.Linear, nn.ReLU]):
        loaded = torch.load(io.BytesIO(files[1]), weights_only=True)
    assert torch.equal(loaded[0].weight, torch.eye(3))
    loaded(torch.ones(1, 3)).sum().backward()


def users_hook(module: nn.Module, args: object, output: Any = None) -> None:
    module.seen = getattr(module, "seen", 0) + 1


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_a_copy_keeps_the_hooks_of_others(copied: Any) -> None:
    model = small_net()
    model[0].register_forward_hook(users_hook)
    with Recorder(model, sgd(model)):
        model[4].register_forward_hook(users_hook)
        model.register_forward_pre_hook(users_hook)
        other = copied(model)
        with Recorder(model, sgd(model)):
            third = copied(model)
    for one in (other, third):
        loss_of(one)
        assert [layer.seen for layer in (one, one[0], one[4])] == [1, 1, 1]
        n_hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in one.modules()]
        assert sum(n_hooks) == 3
        assert isinstance(one[0]._forward_hooks, OrderedDict)
        assert not vars(one[0]._forward_hooks)
    assert not vars(model[0]._forward_hooks)


def test_a_copy_can_have_a_recorder_of_its_own() -> None:
    model = small_net()
    with Recorder(model, sgd(model)):
        other = copy.deepcopy(model)
    optimizer, hand = sgd(other), ByHand(other)
    with Recorder(other, optimizer) as recorder:
        train_step(hand, optimizer)
    hand.compare(recorder.trace)


def test_two_recorders_on_one_model() -> None:
    """Equal values, and the one that is left goes on alone."""
    model = small_net()
    optimizer, hand = sgd(model), ByHand(model)
    first, second = Recorder(model, optimizer), Recorder(model, optimizer)
    for seed in range(2):
        train_step(hand, optimizer, seed)
    first.close()
    assert_same_trace(first.trace, second.trace, rtol=1e-12)
    for seed in range(2, 4):
        train_step(hand, optimizer, seed)
    second.close()
    assert len(first.trace) == 2
    hand.compare(second.trace)


def test_two_threads_train_two_models() -> None:
    """As in turn: what a thread's backward pass does is no business of the other's."""

    def train(seed: int, wait: Any, traces: dict[int, Trace]) -> None:
        model = models[seed]
        optimizer = sgd(model)
        with Recorder(model, optimizer) as recorder:
            for step in range(6):
                wait()
                optimizer.zero_grad()
                for part in range(2):
                    loss = loss_of(model, 10 * step + part + seed)
                    wait()
                    loss.backward()
                optimizer.step()
        traces[seed] = recorder.trace

    results: list[dict[int, Trace]] = []
    for in_threads in (False, True):
        models = [small_net(seed) for seed in range(2)]
        traces: dict[int, Trace] = {}
        barrier = threading.Barrier(2)
        if in_threads:
            threads = [
                threading.Thread(target=train, args=(seed, barrier.wait, traces))
                for seed in range(2)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            for seed in range(2):
                train(seed, lambda: None, traces)
        results.append(traces)
    for seed in range(2):
        assert_same_trace(results[1][seed], results[0][seed])


# -- chosen measures ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "measures",
    [
        ["output_grad_norm", "output_grad_nonfinite"],
        ["output_rms"],
        ["output_grad_rms", "grad_norm"],
        ["output_dead_window", "output_dead_fraction"],
        OUTPUT_MEASURES,
        PARAMETER_MEASURES,
        ["update_norm"],
        ["grad_dot_update"],
        ["angle_from_start", "grad_cosine"],
        ["grad_norm", "output_mean"],
    ],
    ids=lambda measures: f"{len(measures)} from {measures[0]}",
)
def test_only_what_is_chosen_is_in_the_trace_and_is_right(measures: Any) -> None:
    model = small_net()
    optimizer, hand = sgd(model), ByHand(model)
    has_outputs = any(MEASURES[name].of != "parameter" for name in measures)
    has_parameters = any(MEASURES[name].of == "parameter" for name in measures)
    with Recorder(model, optimizer, measures=measures) as recorder:
        assert any(module._forward_hooks for module in model.modules()) == has_outputs
        for seed in range(2):
            train_step(hand, optimizer, seed)
    trace = recorder.trace
    assert list(trace.values) == list(measures)
    if has_parameters:
        hand.compare(trace)
        return
    assert not any(site.endswith(("weight", "bias")) for site in trace.sites)
    hand._parameters = dict.fromkeys(hand._parameters, {})
    hand.compare(trace)


def test_measures_of_gradients_alone_read_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(*args: object, **kwargs: object) -> None:
        raise AssertionError

    monkeypatch.setattr("gradflow.record.outputs.output_sums", must_not_run)
    model = small_net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, measures=["output_grad_norm"]) as recorder:
        loss_of(model).backward()
        optimizer.step()
    assert (recorder.trace.values["output_grad_norm"] > 0).all()


# -- going on ----------------------------------------------------------------------------------


def test_a_resumed_recording_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """What looks back over several steps: the dead window, the start, the last gradient."""
    measures = [*DEFAULT_MEASURES, "angle_from_start", "grad_cosine"]
    model = small_net()
    with torch.no_grad():
        model[1].bias[1] = -100  # a dead channel behind the ReLU
    start = copy.deepcopy(model.state_dict())
    optimizer, hand = sgd(model, 0.01), ByHand(model)
    with Recorder(model, optimizer, measures=measures, cadence=1) as recorder:
        for seed in range(20):
            train_step(hand, optimizer, seed)
    whole = recorder.trace
    hand.compare(whole)
    relu = whole.sites.index("2")
    window = whole.values["output_dead_window"][:, relu]
    assert np.isnan(window[:15]).all()
    assert (window[15:] == 0.25).all()

    model.load_state_dict(start)
    optimizer = sgd(model, 0.01)
    with Recorder(model, optimizer, measures=measures, cadence=1, folder=tmp_path) as recorder:
        for seed in range(12):
            plain_step(model, optimizer, seed)
        torch.save([model.state_dict(), recorder.state_dict()], tmp_path / "checkpoint.pt")
    weights, state = torch.load(tmp_path / "checkpoint.pt")
    model = small_net(seed=7)
    model.load_state_dict(weights)
    optimizer = sgd(model, 0.01)
    with Recorder(
        model, optimizer, measures=measures, cadence=1, folder=tmp_path, first_step=12
    ) as recorder:
        recorder.load_state_dict(state)
        for seed in range(12, 20):
            plain_step(model, optimizer, seed)
    resumed = recorder.trace
    assert resumed.steps.tolist() == list(range(20))
    for measure in measures:
        np.testing.assert_allclose(
            resumed.values[measure], whole.values[measure], rtol=1e-5, atol=1e-7, err_msg=measure
        )


def test_a_state_taken_in_the_middle_does_not_change_the_recording() -> None:
    measures = [*DEFAULT_MEASURES, "angle_from_start", "grad_cosine"]
    model = small_net()
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(model, optimizer, measures=measures, every=2) as recorder:
        for seed in range(6):
            train_step(hand, optimizer, seed)
            recorder.state_dict()
    hand.compare(recorder.trace, steps=[0, 2, 4])


def test_a_step_of_another_thread_in_the_midst_of_one(caplog: pytest.LogCaptureFixture) -> None:
    """One model and one optimizer in several threads: the step that began first is recorded."""
    inside, goes_on = threading.Event(), threading.Event()

    class Slow(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if threading.current_thread() is slow:
                inside.set()
                assert goes_on.wait(10)
            return super().step(closure)

    model = small_net()
    optimizer = Slow(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    with Recorder(model, optimizer) as recorder:
        loss_of(model).backward()
        slow = threading.Thread(target=optimizer.step)
        slow.start()
        assert inside.wait(10)
        optimizer.step()
        goes_on.set()
        slow.join()
    want = (model[0].weight.detach() - before).norm().item()
    got = recorder.trace.select("update_norm")
    assert got.values[0, got.sites.index("0.weight")] == pytest.approx(want, rel=1e-5)
    assert recorder.trace.steps.tolist() == [0]
    assert "a step of Slow: another is under way in another thread" in caplog.text
