"""Training loops of all sorts: what belongs to a step, by hand and by the Recorder."""

import gc
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
from byhand import ByHand
from loops import Net, draw, inputs, loss_of, sgd, small_net, train_by_hand, watched
from torch import Tensor, nn

from gradflow import Recorder
from gradflow.record import DEFAULT_MEASURES
from gradflow.record.backward import ForwardPass

WITH_FIRST_ORDER = [*DEFAULT_MEASURES, "grad_dot_update"]


# -- backward passes and steps -----------------------------------------------------------------


@pytest.mark.parametrize("set_to_none", [True, False])
def test_plain_steps_recorded_and_not(set_to_none: bool) -> None:
    model = small_net()
    train_by_hand(
        model, lambda step, _: loss_of(model, step), n_steps=5, every=2, set_to_none=set_to_none,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), measures=WITH_FIRST_ORDER,
    )  # fmt: skip


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_uneven_micro_batches(interval: int, set_to_none: bool) -> None:
    model = small_net()

    def loss(step: int, part: int) -> Tensor:
        n = (8, 3, 2)[part]
        return loss_of(model, seed=10 * step + n, n=n) * n / 13

    train_by_hand(model, loss, n_passes=3, every=interval, set_to_none=set_to_none)


def test_clipping_counts_and_leaves_the_output_gradients() -> None:
    model = small_net()
    trace = train_by_hand(
        model,
        lambda step, _: loss_of(model, step),
        after=lambda step: nn.utils.clip_grad_norm_(model.parameters(), 1e-2),
    )
    norms = trace.select("grad_norm").values
    np.testing.assert_allclose(np.sqrt(np.nansum(norms**2, axis=1)), 1e-2, rtol=1e-3)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_the_loop_throws_away_is_no_part_of_the_next(
    set_to_none: bool, accumulate: int
) -> None:
    """No update came to nothing, so that no step was skipped: there was none."""
    model = small_net()
    with watched(model) as hand:
        for attempt in range(4):
            hand.zero(set_to_none)
            for part in range(accumulate):
                hand.backward(loss_of, model, 10 * attempt + part)
            if attempt in (1, 2):  # say, the loss was too large
                hand.forget()
            else:
                hand.update()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_micro_batch_without_a_gradient_is_no_thrown_away_step(set_to_none: bool) -> None:
    """All of its targets are masked: its gradients are zero by themselves."""
    model = small_net()
    train_by_hand(model, lambda _, part: loss_of(model) * part, n_passes=2, set_to_none=set_to_none)


def test_a_gradient_penalty_by_autograd_grad() -> None:
    """Both forward passes count, with the gradient of the loss that `backward` was called on."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    with watched(model) as hand:
        for seed in range(2):
            hand.zero()
            x = inputs(4, 6, seed=seed).requires_grad_()
            with hand.forward():
                score = model(x)
            with hand.aside():
                (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            hand.backward(lambda p=penalty: model(inputs(4, 6)).square().mean() + p)
            hand.update()


def test_a_backward_pass_after_the_step_counts_in_the_next() -> None:
    """Pipelined loops run the forward pass of the next batch before the step."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())  # whose backward pass needs no weight
    images = draw(5, 6)
    with watched(model) as hand:
        with hand.forward():
            loss = model(images()).square().mean()
        for step in range(3):
            hand.zero()
            loss.backward()
            with hand.forward(step=step + 1):
                loss = model(images()).square().mean()
            hand.update()


def test_a_forward_pass_lives_as_long_as_its_graph() -> None:
    """Acting in reinforcement learning runs a network in train mode without end."""
    model = small_net()
    optimizer = sgd(model)
    with Recorder(model, optimizer):
        before = n_forward_passes()
        for seed in range(2):
            for _ in range(20):
                loss_of(model)
            loss_of(model, seed).backward()
            optimizer.step()
            assert n_forward_passes() <= before + 1


def n_forward_passes() -> int:
    gc.collect()
    return sum(type(one) is ForwardPass for one in gc.get_objects())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parts_of_a_model_called_one_by_one(accumulate: int) -> None:
    """The model itself is never called."""
    model = nn.ModuleDict({"encoder": nn.Linear(6, 4), "act": nn.ReLU(), "head": nn.Linear(4, 2)})
    images = draw(5, 6)

    def loss(step: int, part: int) -> Tensor:
        return model["head"](model["act"](model["encoder"](images()))).square().mean()

    assert "head#1" not in train_by_hand(model, loss, n_passes=accumulate).sites


# -- optimizers --------------------------------------------------------------------------------


def test_a_closure_is_evaluated_inside_the_step() -> None:
    model = small_net()
    with watched(model) as hand:
        for seed in range(3):

            def closure(seed: int = seed) -> None:
                hand.zero()
                hand.backward(loss_of, model, seed)
                hand.before_step()

            if seed == 1:
                hand.optimizer.step(closure=closure)
            else:
                hand.optimizer.step(closure)
            hand.after_step()


@pytest.mark.parametrize("interval", [1, 2])
def test_lbfgs_is_recorded_at_its_first_evaluation(interval: int, reads: list[bool]) -> None:
    """Later evaluations are no thrown-away steps, and are not read."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    x = inputs(8, 6).double()
    n_evaluations = []
    with watched(model, optimizer, every=interval) as hand:
        for _ in range(3):
            calls = []

            def closure(calls: list[int] = calls) -> Tensor:
                hand.zero()
                with hand.forward() if not calls else nullcontext():
                    loss = (model(x) - 1).square().mean()
                loss.backward()
                if not calls:
                    hand.before_step()
                calls.append(1)
                return loss

            optimizer.step(closure)
            hand.after_step()
            n_evaluations.append(len(calls))
    assert n_evaluations == [3, 3, 3]
    assert len(reads) == 3 * len(hand.recorder.trace), "one of each layer"


def test_an_update_by_hand_is_put_into_around_step() -> None:
    """One that raises is not counted."""
    model = small_net()
    hand = ByHand(model)
    with Recorder(model, None, measures=WITH_FIRST_ORDER, every=2) as recorder:
        loss_of(model, 7).backward()
        with suppress(ZeroDivisionError), recorder.around_step():
            raise ZeroDivisionError
        assert recorder.step == 0
        for seed in range(3):
            hand.zero()
            hand.backward(loss_of, model, seed)
            with hand.step(), recorder.around_step(), torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad.sign()
    hand.compare(recorder.trace, steps=[0, 2])


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.SparseAdam])
def test_sparse_gradients_of_an_embedding(optimizer_class: Any) -> None:
    model = nn.EmbeddingBag(9, 4, mode="sum", sparse=True)
    optimizer = optimizer_class(model.parameters(), lr=0.05)

    def loss(step: int, part: int) -> Tensor:
        return model(torch.tensor([[1, 1, 5], [step, 7, 7]])).square().sum()

    train_by_hand(model, loss, optimizer=optimizer)
    assert model.weight.grad.is_sparse


def test_sparse_and_dense_gradients_in_one_model() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2))

    def loss(step: int, shift: int) -> Tensor:  # sparse gradients that add up
        return model(torch.tensor([[1, 2, 2 + step, 5 + shift]])).square().sum()

    train_by_hand(model, loss, n_steps=2, n_passes=2)


# -- errors ------------------------------------------------------------------------------------


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise ZeroDivisionError


def fragile(net: Net, x: Tensor) -> Tensor:
    """It raises in the forward or the backward pass when told to."""
    hidden = net.relu(net.first(x))
    if net.fails_in == "forward":
        raise ZeroDivisionError
    if net.fails_in == "backward":
        hidden = Failing.apply(hidden)
    return net.last(hidden)


PLACES = ("forward", "backward", "between", "step")
BROKEN = [(place, set_to_none) for place in PLACES for set_to_none in (True, False)]
BROKEN.append(("backward", None))  # not zeroed: to what has arrived the next pass adds


@pytest.mark.parametrize(("fails_in", "set_to_none"), BROKEN)
def test_after_an_exception_the_next_step_is_right(fails_in: str, set_to_none: bool | None) -> None:
    model = Net(fragile, first=nn.Linear(4, 6), relu=nn.ReLU(), last=nn.Linear(6, 2), fails_in="")
    optimizer = sgd(model)
    optimizer.register_step_pre_hook(lambda *_: 1 / (model.fails_in != "step") and None)
    with watched(model, optimizer) as hand:
        for attempt in range(4):
            model.fails_in = fails_in if attempt == 1 else ""
            if set_to_none is not None:
                hand.zero(set_to_none)
            try:
                with hand.forward():
                    loss = model(inputs(seed=attempt)).square().mean()
                if model.fails_in == "between":
                    raise ZeroDivisionError
                loss.backward()
                hand.before_step()
                optimizer.step()
                hand.after_step()
            except ZeroDivisionError:
                hand.forget()
    assert hand.step_index == 3
