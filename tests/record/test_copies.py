"""Copies, files, several Recorders, threads, and going on from a checkpoint."""

import copy
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byhand import assert_same_trace, value
from loops import loss_of, plain_step, recorded, sgd, small_net, watched
from torch import Tensor, nn

from gradflow import Recorder, Trace
from gradflow.record import DEFAULT_MEASURES

WITH_COPIES = [*DEFAULT_MEASURES, "angle_from_start", "grad_cosine"]


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_a_copy_of_a_watched_model_is_not_watched(copied: Any) -> None:
    """An EMA, a checkpoint of the whole model, a target network. Its passes are no micro-batch."""
    model = small_net()
    with watched(model, measures=[*WITH_COPIES, "grad_dot_update", "grad_noise"]) as hand:
        hand.train(loss_of, model, 0)
        other = copied(model)
        other_optimizer = sgd(other)
        for seed in (1, 2):
            hand.zero()
            with hand.forward():
                loss = loss_of(model, seed)
            loss_of(other, 5).backward()
            loss.backward()
            plain_step(other, other_optimizer, 6)
            hand.update()
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
    with watched(other) as hand:
        hand.train(loss_of, other)


def test_two_recorders_on_one_model() -> None:
    """Equal values, and the one that is left goes on alone."""
    model = small_net()
    with watched(model) as hand:
        first = Recorder(model, hand.optimizer)
        for seed in range(2):
            hand.train(loss_of, model, seed)
        first.close()
        assert_same_trace(first.trace, hand.recorder.trace, rtol=1e-12)
        for seed in range(2, 4):
            hand.train(loss_of, model, seed)
    assert len(first.trace) == 2


def test_two_threads_train_two_models() -> None:
    """As in turn: what a thread's backward pass does is no business of the other's."""

    def train(model: nn.Module, seed: int, wait: Callable[[], object] = lambda: None) -> Trace:
        def loss(index: int) -> Tensor:
            wait()
            found = loss_of(model, seed + index)
            wait()
            return found

        return recorded(model, loss, n_steps=6, n_passes=2)

    wait = threading.Barrier(2).wait
    with ThreadPoolExecutor(2) as pool:
        models = [small_net(seed) for seed in range(2)]
        together = list(pool.map(train, models, range(2), [wait, wait]))
    for seed in range(2):
        assert_same_trace(together[seed], train(small_net(seed), seed))


# -- going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "cadence", "stop", "end"),
    [(1, 1, 12, 20), (3, 4, 53, 90), (lambda step: step % 3 == 0, 4, 53, 90)],
)
def test_a_resumed_recording_goes_on_as_if_it_had_not_stopped(
    every: Any, cadence: int, stop: int, end: int, tmp_path: Path
) -> None:
    """What looks back over several steps, and at which of them what is dear is measured."""
    options = {"measures": WITH_COPIES, "every": every, "cadence": cadence}
    first, second = small_net(), small_net(seed=7)
    optimizer = sgd(first)
    with Recorder(first, optimizer, folder=tmp_path, **options) as recorder:
        for seed in range(stop):
            plain_step(first, optimizer, seed)
        torch.save([first.state_dict(), recorder.state_dict()], tmp_path / "checkpoint.pt")
    weights, state = torch.load(tmp_path / "checkpoint.pt")
    second.load_state_dict(weights)
    optimizer = sgd(second)
    with Recorder(second, optimizer, folder=tmp_path, first_step=stop, **options) as recorder:
        recorder.load_state_dict(state)
        for seed in range(stop, end):
            plain_step(second, optimizer, seed)
    resumed, model = recorder.trace, small_net()
    whole = recorded(model, lambda seed: loss_of(model, seed), n_steps=end, **options)
    assert resumed.steps.tolist() == whole.steps.tolist()
    for measure in WITH_COPIES:
        np.testing.assert_allclose(
            resumed.values[measure], whole.values[measure], rtol=1e-5, atol=1e-7, err_msg=measure
        )


def test_what_looks_back_over_steps_is_right_also_where_a_state_is_taken() -> None:
    model = small_net()
    with torch.no_grad():
        model[1].bias[1] = -100  # a dead channel behind the ReLU
    with watched(model, sgd(model, 0.01), measures=WITH_COPIES, every=2, cadence=1) as hand:
        for seed in range(36):
            hand.train(loss_of, model, seed)
            hand.recorder.state_dict()
    trace = hand.recorder.trace
    window = trace.values["output_dead_window"][:, trace.sites.index("2")]
    assert np.isnan(window[:15]).all()
    assert (window[15:] == 0.25).all()


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
    assert value(recorder.trace, "update_norm", "0.weight") == pytest.approx(want, rel=1e-5)
    assert recorder.trace.steps.tolist() == [0]
    assert "a step of Slow: another is under way in another thread" in caplog.text
