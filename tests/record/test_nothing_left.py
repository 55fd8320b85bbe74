"""A Recorder that is refused, fails or is closed leaves nothing behind."""

from contextlib import suppress
from typing import Any

import pytest
import torch
from loops import mlp, sgd, square
from torch import Tensor, nn

from gradflow import Recorder
from gradflow.record import Measure


def assert_nothing_left(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            assert not hooks
            assert not vars(hooks)
    for parameter in model.parameters():
        assert not parameter._backward_hooks
        assert not parameter._post_accumulate_grad_hooks
    for optimizer in optimizers:
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks


class Custom:
    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self) -> None:
        self.inner.step()


class Wrapper(Custom, torch.optim.Optimizer):
    """As in older code: it forwards what it does not know to the optimizer inside."""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda one: [], "at least one optimizer"),
        (lambda one: [one, one], "each once"),
        (lambda one: [one, None], "None among them"),
        (lambda one: [one, sgd(mlp())], "holds none of them"),
        (Custom, "torch.optim.Optimizer, but got Custom.*around_step"),
        (Wrapper, r"Wrapper does not call `super\(\).__init__\(\)`.*inside"),
    ],
)
def test_wrong_optimizers_are_refused_with_a_way_out(wrong: Any, message: str) -> None:
    model = mlp()
    optimizer = sgd(model)
    with pytest.raises((TypeError, ValueError), match=message):
        Recorder(model, wrong(optimizer))
    assert_nothing_left(model, optimizer)


@pytest.mark.parametrize("at", ["schedule", "hooks", "optimizer"])
def test_a_constructor_that_fails_undoes_itself(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    optimizers = [sgd(model[0]), sgd(model[2])]

    def fails(*args: object) -> bool:
        raise ZeroDivisionError

    if at == "hooks":
        monkeypatch.setattr(model, "register_forward_pre_hook", fails)
    if at == "optimizer":
        monkeypatch.setattr(optimizers[1], "register_step_post_hook", fails)
    measures = ["output_rms", "grad_noise"]
    every = fails if at == "schedule" else 1
    with pytest.raises(ZeroDivisionError):
        Recorder(model, optimizers, every=every, measures=measures)
    assert_nothing_left(model, *optimizers)


def test_close_leaves_nothing_behind_also_after_an_error() -> None:
    model = mlp()
    optimizer = sgd(model)
    with suppress(ZeroDivisionError), Recorder(model, optimizer) as recorder:
        square(model).backward()
        optimizer.step()
        raise ZeroDivisionError
    assert_nothing_left(model, optimizer)
    square(model).backward()
    optimizer.step()
    assert len(recorder.trace) == 1


@pytest.mark.parametrize("of", ["output", "output gradient", "parameter"])
def test_a_user_measure_that_raises_is_the_users_and_all_can_be_closed(of: Any) -> None:
    def fails(*tensors: Tensor) -> Tensor:
        raise ZeroDivisionError

    model = mlp()
    optimizer = sgd(model)
    recorder = Recorder(model, optimizer, measures=[Measure("mine", of, "", "", function=fails)])
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        square(model).backward()
        optimizer.step()
    with suppress(UserWarning):
        recorder.close()
    assert_nothing_left(model, optimizer)
