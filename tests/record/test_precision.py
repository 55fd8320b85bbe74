"""Mixed precision: autocast, loss scaling, and the steps that a scaler skips."""

from typing import Any

import pytest
import torch
from byhand import ByHand, value
from loops import batch, loss_of, sgd, small_net, train_by_hand, watched
from torch import Tensor, nn

from gradflow import Recorder
from gradflow.record import DEFAULT_MEASURES

SCALE = 2.0**14  # of the size that float16 training has

OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    (torch.optim.AdamW, {"lr": 0.01, "foreach": True}),
    (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
]


def train_scaled(
    make: Any, settings: dict[str, Any], gives_scaler: bool, overflows_in: int | None, **given: Any
) -> tuple[Recorder, ByHand, list[int]]:
    """Four attempts under a GradScaler; also gives the attempts that changed a weight."""
    is_fused = settings.get("fused", False)
    model = small_net()
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)
    hand, done = ByHand(model, make(model.parameters(), **settings)), []
    measures = [*DEFAULT_MEASURES, "grad_dot_update", "grad_cosine"]
    with Recorder(
        model, hand.optimizer, scaler=scaler if gives_scaler else None, measures=measures, **given
    ) as recorder:
        for attempt in range(4):
            hand.zero()
            scale = scaler.get_scale()
            factor = float("inf") if attempt == overflows_in else 1.0
            hand.backward(lambda seed, by: scaler.scale(loss_of(model, seed) * by), attempt, factor)
            before = model[4].weight.detach().clone()
            if attempt == overflows_in and not is_fused:
                hand.forget()  # the optimizer is not called
                scaler.step(hand.optimizer)
            else:
                with hand.step(scale=scale):
                    scaler.step(hand.optimizer)
            scaler.update()
            if not torch.equal(before, model[4].weight):
                done.append(attempt)
    return recorder, hand, done


@pytest.mark.parametrize(("make", "settings"), OPTIMIZERS)
def test_scaled_gradients_are_recorded_in_true_size(make: Any, settings: dict[str, Any]) -> None:
    """Also as the scale grows from step to step."""
    recorder, hand, done = train_scaled(make, settings, gives_scaler=True, overflows_in=None)
    assert done == [0, 1, 2, 3]
    hand.compare(recorder.trace)
    assert recorder.skipped_steps == []


@pytest.mark.parametrize(("make", "settings"), OPTIMIZERS)
@pytest.mark.parametrize("gives_scaler", [True, False])
@pytest.mark.parametrize("interval", [1, 2])
def test_a_skipped_step_is_told_and_is_no_part_of_the_next(
    make: Any, settings: dict[str, Any], gives_scaler: bool, interval: int
) -> None:
    recorder, hand, done = train_scaled(
        make, settings, gives_scaler, overflows_in=2, every=interval
    )
    assert done == [0, 1, 3]
    if not gives_scaler and not settings.get("fused"):
        # Nobody told the Recorder what the loss was multiplied by: outputs keep the scale.
        for step, row in hand._outputs.items():
            for one in (one for seen in row.values() for one in seen if one.grad is not None):
                one.grad = one.grad * hand._scales[step]
    hand.compare(recorder.trace, steps=range(0, hand.step_index, interval))
    assert recorder.skipped_steps == [2]


def test_a_last_step_that_is_skipped_is_told_too() -> None:
    """No backward pass follows that would find its gradients zeroed."""
    recorder, hand, done = train_scaled(torch.optim.SGD, {}, gives_scaler=True, overflows_in=3)
    assert done == [0, 1, 2]
    hand.compare(recorder.trace)
    assert recorder.skipped_steps == [3]


@pytest.mark.parametrize("scale", [SCALE, None])
def test_accumulation_and_clipping_under_a_scaler(scale: float | None) -> None:
    """Also one that is disabled, which changes nothing."""
    model = small_net()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    with watched(model, scaler=scaler) as hand:
        for step in range(3):
            hand.zero()
            for part in range(2):
                seed = 10 * step + part
                hand.backward(lambda seed=seed: scaler.scale(loss_of(model, seed) / 2))
            scaler.unscale_(hand.optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            with hand.step():
                hand._scales[step] = scale or 1.0  # of the outputs: the parameters' are unscaled
                scaler.step(hand.optimizer)
            scaler.update()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_autocast_outputs_and_gradients(dtype: torch.dtype, accumulate: int) -> None:
    """Outputs in 16 bits are summed in float32 at least; parameters stay in float32."""
    model = small_net()

    def loss(step: int, part: int) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return loss_of(model, 10 * step + part)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train_by_hand(model, loss, n_passes=accumulate, optimizer=optimizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_in_another_type(dtype: torch.dtype) -> None:
    """Updates that round to nothing in 16 bits show as elements that do not change."""
    model = small_net().to(dtype)

    def loss(step: int, part: int) -> Tensor:
        images, labels = batch(seed=step)
        return nn.functional.cross_entropy(model(images.to(dtype)).float(), labels)

    trace = train_by_hand(model, loss, optimizer=sgd(model, 1e-2))
    changed = value(trace, "update_changed_fraction", "4.weight")
    assert (changed < 0.9) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("factor", [1e-25, 1e20])
def test_flat_and_enormous_values_are_not_lost(factor: float) -> None:
    """Squares of float32 that leave its range, on both sides."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(factor)

    def loss(*_: int) -> Tensor:
        return model(torch.ones(3, 6)).sum() / 1e10

    train_by_hand(model, loss, n_steps=1, optimizer=sgd(model, 0.0))
