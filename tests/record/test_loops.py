"""Training loops of all sorts: what belongs to a step, by hand and by the Recorder."""

import gc
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
from byhand import (
    ByHand,
    assert_same_trace,
    batch,
    draw,
    loss_of,
    output_row,
    sgd,
    small_net,
    train_by_hand,
)
from byhand import watched_step as train_step
from torch import Tensor, nn

from gradflow import Recorder
from gradflow.record import DEFAULT_MEASURES
from gradflow.record.backward import ForwardPass

WITH_FIRST_ORDER = [*DEFAULT_MEASURES, "grad_dot_update"]


# -- backward passes and steps -----------------------------------------------------------------


def test_plain_steps_recorded_and_not() -> None:
    model = small_net()
    optimizer, hand = torch.optim.AdamW(model.parameters(), lr=1e-2), ByHand(model)
    with Recorder(model, optimizer, every=2, measures=WITH_FIRST_ORDER) as recorder:
        for seed in range(5):
            train_step(hand, optimizer, seed)
    hand.compare(recorder.trace, steps=[0, 2, 4])


@pytest.mark.parametrize("interval", [1, 2])
def test_uneven_micro_batches(interval: int) -> None:
    model = small_net()

    def loss(step: int, part: int) -> Tensor:
        n = (8, 3, 2)[part]
        return loss_of(model, seed=10 * step + n, n=n) * n / 13

    train_by_hand(model, loss, n_passes=3, every=interval)


def test_clipping_counts_and_leaves_the_output_gradients() -> None:
    model = small_net()
    trace = train_by_hand(
        model,
        lambda step, _: loss_of(model, step),
        after=lambda step: nn.utils.clip_grad_norm_(model.parameters(), 1e-2),
    )
    norms = trace.select("grad_norm").values
    np.testing.assert_allclose(np.sqrt(np.nansum(norms**2, axis=1)), 1e-2, rtol=1e-3)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_both_ways_of_zeroing_gradients_give_one_trace(accumulate: int) -> None:
    traces = []
    for set_to_none in (True, False):
        model = small_net()

        def loss(step: int, part: int, model: nn.Module = model) -> Tensor:
            return loss_of(model, 10 * step + part)

        traces.append(train_by_hand(model, loss, n_passes=accumulate, set_to_none=set_to_none))
    assert_same_trace(*traces)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_the_loop_throws_away_is_no_part_of_the_next(
    set_to_none: bool, accumulate: int
) -> None:
    model = small_net()
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(model, optimizer) as recorder:
        for attempt in range(4):
            optimizer.zero_grad(set_to_none=set_to_none)
            for part in range(accumulate):
                with hand.forward():
                    loss = loss_of(model, 10 * attempt + part)
                loss.backward()
            if attempt in (1, 2):  # say, the loss was too large
                hand.forget()
                continue
            with hand.step():
                optimizer.step()
    hand.compare(recorder.trace)
    assert recorder.skipped_steps == [], "no update came to nothing: there was none"


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_micro_batch_without_a_gradient_is_no_thrown_away_step(set_to_none: bool) -> None:
    """All of its targets are masked: its gradients are zero by themselves."""
    model = small_net()
    train_by_hand(model, lambda _, part: loss_of(model) * part, n_passes=2, set_to_none=set_to_none)


def test_a_gradient_penalty_by_autograd_grad() -> None:
    """Both forward passes count, with the gradient of the loss that `backward` was called on."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    optimizer, hand = sgd(model), ByHand(model)
    generator = torch.Generator().manual_seed(0)
    with Recorder(model, optimizer) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            x = torch.randn(4, 6, generator=generator, requires_grad=True)
            with hand.forward():
                score = model(x)
            with hand.aside():
                (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            with hand.forward():
                loss = model(torch.randn(4, 6, generator=generator)).square().mean()
            (loss + penalty).backward()
            with hand.step():
                optimizer.step()
    hand.compare(recorder.trace)
    assert recorder.skipped_steps == []


@pytest.mark.parametrize("when", ["before", "between", "after"])
@pytest.mark.parametrize("measures", [DEFAULT_MEASURES, ["output_rms", "output_mean"]])
def test_a_forward_pass_without_a_backward_pass_is_no_part_of_the_step(
    when: str, measures: Any
) -> None:
    model = small_net()
    optimizer, hand = sgd(model), ByHand(model)
    images = batch(seed=5)[0] * 100
    with Recorder(model, optimizer, measures=measures) as recorder:
        for seed in range(2):
            optimizer.zero_grad()
            if when == "before":
                model(images)
            with hand.forward():
                loss = loss_of(model, seed)
            if when == "between":
                model(images)
            loss.backward()
            if when == "after":
                model(images)
            with hand.step():
                optimizer.step()
    for measure in measures:
        assert measure in recorder.trace.values
    if measures is DEFAULT_MEASURES:
        hand.compare(recorder.trace)
    else:
        assert_outputs(hand, recorder)


def assert_outputs(hand: ByHand, recorder: Recorder) -> None:
    """Of a trace without parameters."""
    trace = recorder.trace
    for index in range(len(trace)):
        for name, seen in hand._outputs[index].items():
            for measure in trace.measures:
                got = trace.values[measure][index, trace.sites.index(name)]
                assert got == pytest.approx(output_row(seen)[measure], rel=1e-5, abs=1e-7)


def test_a_backward_pass_after_the_step_counts_in_the_next() -> None:
    """Pipelined loops run the forward pass of the next batch before the step."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())  # whose backward pass needs no weight
    optimizer, hand = sgd(model), ByHand(model)
    generator = torch.Generator().manual_seed(0)
    with Recorder(model, optimizer) as recorder:
        with hand.forward():
            loss = model(torch.randn(5, 6, generator=generator)).square().mean()
        for step in range(3):
            optimizer.zero_grad()
            loss.backward()
            with hand.forward(step=step + 1):
                loss = model(torch.randn(5, 6, generator=generator)).square().mean()
            with hand.step():
                optimizer.step()
    hand.compare(recorder.trace)


def test_a_forward_pass_lives_as_long_as_its_graph() -> None:
    """Acting in reinforcement learning runs a network in train mode without end."""
    model = small_net()
    optimizer = sgd(model)
    with Recorder(model, optimizer):
        before = n_forward_passes()
        for seed in range(2):
            for _ in range(20):
                model(batch()[0])
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


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference_mode"])
def test_passes_that_do_not_train_are_not_recorded(mode: str) -> None:
    model = small_net()
    optimizer, hand = sgd(model), ByHand(model)
    images = batch(seed=9)[0] * 50
    without_grad = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}

    def evaluate() -> None:
        model.train(mode != "eval")
        with without_grad.get(mode, nullcontext)():
            model(images)
        model.train()

    with Recorder(model, optimizer) as recorder:
        for seed in range(3):
            evaluate()
            optimizer.zero_grad()
            with hand.forward():
                loss = loss_of(model, seed)
            if seed == 1:
                evaluate()  # between forward and backward
            loss.backward()
            evaluate()
            with hand.step():
                optimizer.step()
    hand.compare(recorder.trace)


# -- optimizers --------------------------------------------------------------------------------


def test_a_closure_is_evaluated_inside_the_step() -> None:
    model = small_net()
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(model, optimizer) as recorder:
        for seed in range(3):

            def closure(seed: int = seed) -> Tensor:
                optimizer.zero_grad()
                with hand.forward():
                    loss = loss_of(model, seed)
                loss.backward()
                hand.before_step()
                return loss

            if seed == 1:
                optimizer.step(closure=closure)
            else:
                optimizer.step(closure)
            hand.after_step()
    hand.compare(recorder.trace)


@pytest.mark.parametrize("interval", [1, 2])
def test_lbfgs_is_recorded_at_its_first_evaluation(interval: int) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    hand = ByHand(model)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    n_evaluations = []
    with Recorder(model, optimizer, every=interval) as recorder:
        for _ in range(3):
            calls = []

            def closure(calls: list[int] = calls) -> Tensor:
                optimizer.zero_grad()
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
    assert recorder.skipped_steps == [], "later evaluations are no thrown-away steps"
    hand.compare(recorder.trace, steps=range(0, 3, interval))


def test_an_update_by_hand_is_put_into_around_step() -> None:
    model = small_net()
    hand = ByHand(model)
    measures = [*WITH_FIRST_ORDER]
    with Recorder(model, None, measures=measures, every=2) as recorder:
        for seed in range(3):
            model.zero_grad()
            with hand.forward():
                loss = loss_of(model, seed)
            loss.backward()
            with hand.step(), recorder.around_step(), torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad.sign()
    hand.compare(recorder.trace, steps=[0, 2])


def test_an_update_that_raises_is_not_counted() -> None:
    model = small_net()
    hand = ByHand(model)
    with Recorder(model, None) as recorder:
        loss_of(model, 7).backward()
        with suppress(ZeroDivisionError), recorder.around_step():
            raise ZeroDivisionError
        assert recorder.step == 0
        model.zero_grad()
        with hand.forward():
            loss = loss_of(model)
        loss.backward()
        with hand.step(), recorder.around_step(), torch.no_grad():
            model[4].weight -= 0.1
    hand.compare(recorder.trace)


def test_an_optimizer_without_hooks_is_refused_with_a_way_out() -> None:
    class Custom:
        def __init__(self, parameters: Any) -> None:
            self.param_groups = [{"params": list(parameters)}]

        def step(self) -> None: ...

    model = small_net()
    with pytest.raises(TypeError, match="torch.optim.Optimizer, but got Custom.*around_step"):
        Recorder(model, Custom(model.parameters()))  # type: ignore[arg-type]


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


class Fragile(nn.Module):
    """A network that raises in its forward or its backward pass when told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu, self.last = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
        self.fails_in = ""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.first(x))
        if self.fails_in == "forward":
            raise ZeroDivisionError
        if self.fails_in == "backward":
            hidden = _Failing.apply(hidden)
        return self.last(hidden)


class _Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise ZeroDivisionError


@pytest.mark.parametrize("fails_in", ["forward", "backward", "between", "step"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_after_an_exception_the_next_step_is_right(fails_in: str, set_to_none: bool) -> None:
    model = Fragile()
    optimizer, hand = sgd(model), ByHand(model)
    generator = torch.Generator().manual_seed(0)
    optimizer.register_step_pre_hook(lambda *_: 1 / (model.fails_in != "step") and None)
    with Recorder(model, optimizer) as recorder:
        for attempt in range(4):
            model.fails_in = fails_in if attempt == 1 else ""
            optimizer.zero_grad(set_to_none=set_to_none)
            try:
                with hand.forward():
                    loss = model(torch.randn(5, 6, generator=generator)).square().mean()
                if model.fails_in == "between":
                    raise ZeroDivisionError
                loss.backward()
                hand.before_step()
                optimizer.step()
                hand.after_step()
            except ZeroDivisionError:
                hand.forget()
    assert hand.step_index == 3
    hand.compare(recorder.trace)
