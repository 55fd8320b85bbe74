"""Mixed precision: autocast, loss scaling, and the steps that a scaler skips."""

from typing import Any

import pytest
import torch
from byhand import ByHand, batch, loss_of, sgd, small_net, train_by_hand, value
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
    optimizer = make(model.parameters(), **settings)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)
    hand, done = ByHand(model), []
    measures = [*DEFAULT_MEASURES, "grad_dot_update", "grad_cosine"]
    recorder = Recorder(
        model, optimizer, scaler=scaler if gives_scaler else None, measures=measures, **given
    )
    with recorder:
        for attempt in range(4):
            optimizer.zero_grad()
            with hand.forward():
                loss = loss_of(model, attempt)
            if attempt == overflows_in:
                loss = loss * float("inf")
            scale = scaler.get_scale()
            scaler.scale(loss).backward()
            before = model[4].weight.detach().clone()
            if attempt == overflows_in and not is_fused:
                hand.forget()  # the optimizer is not called
                scaler.step(optimizer)
            else:
                with hand.step(scale=scale):
                    scaler.step(optimizer)
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
        for row in hand._outputs.values():
            for seen in row.values():
                for one in seen:
                    if one.grad is not None:
                        one.grad = one.grad * scale_at(hand, row)
    hand.compare(recorder.trace, steps=range(0, hand.step_index, interval))
    assert recorder.skipped_steps == [2]


def test_a_last_step_that_is_skipped_is_told_too() -> None:
    """No backward pass follows that would find its gradients zeroed."""
    recorder, hand, done = train_scaled(torch.optim.SGD, {}, gives_scaler=True, overflows_in=3)
    assert done == [0, 1, 2]
    hand.compare(recorder.trace)
    assert recorder.skipped_steps == [3]


def scale_at(hand: ByHand, row: object) -> float:
    step = next(step for step, seen in hand._outputs.items() if seen is row)
    return hand._scales[step]


def test_accumulation_and_clipping_under_a_scaler() -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    hand = ByHand(model)
    with Recorder(model, optimizer, scaler=scaler) as recorder:
        for step in range(3):
            optimizer.zero_grad()
            for part in range(2):
                with hand.forward():
                    loss = loss_of(model, 10 * step + part) / 2
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            hand.before_step()
            hand._scales[step] = SCALE  # of the outputs; the parameters' were divided above
            scaler.step(optimizer)
            hand.after_step()
            scaler.update()
    hand.compare(recorder.trace)


def test_a_disabled_scaler_changes_nothing() -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    hand = ByHand(model)
    with Recorder(model, optimizer, scaler=scaler) as recorder:
        with hand.forward():
            loss = loss_of(model)
        scaler.scale(loss).backward()
        with hand.step():
            scaler.step(optimizer)
    hand.compare(recorder.trace)


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


def test_flat_and_enormous_values_are_not_lost() -> None:
    """Squares of float32 that leave its range, on both sides."""
    for factor in (1e-25, 1e20):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
        with torch.no_grad():
            model[0].weight.mul_(factor)
            model[0].bias.mul_(factor)
        train_by_hand(
            model,
            lambda *_, model=model: model(torch.ones(3, 6)).sum() / 1e10,
            n_steps=1,
            optimizer=sgd(model, 0.0),
        )
