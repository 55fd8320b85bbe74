"""The user's own step: wrappers, closures, several optimizers, hooks of others."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
from byhand import ByHand, value
from loops import Net, inputs, mlp, recorded, sgd, square, watched
from torch import Tensor, nn

from gradflow import Recorder, Trace
from gradflow.record import DEFAULT_MEASURES, PARAMETER_MEASURES


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().double().clone() for name, p in model.named_parameters()}


def assert_updates(trace: Trace, step: int, before: Any, after: Any, names: Any = None) -> None:
    for name in names or before:
        want = (after[name] - before[name]).norm().item()
        assert value(trace, "update_norm", name, step) == pytest.approx(want, rel=1e-5), name
        want = before[name].norm().item()
        assert value(trace, "weight_norm", name, step) == pytest.approx(want, rel=1e-5), name


# -- wrappers and closures ---------------------------------------------------------------------


class Sam(torch.optim.Optimizer):
    """Climbs, asks for the gradient there, goes back, and steps with it; in one call or in two."""

    def __init__(self, params: Any, rho: float = 0.5) -> None:
        super().__init__(params, {})
        self.rho, self.base = rho, torch.optim.SGD(self.param_groups, lr=0.1)

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["climb"] = self.rho * p.grad
            p.add_(self.state[p]["climb"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(self.state[p]["climb"])
        self.base.step()
        self.zero_grad()

    def step(self, closure: Callable[[], Tensor]) -> None:
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


def test_an_optimizer_that_moves_the_weights_before_its_closure() -> None:
    """The pass at the climbed weights counts alone; the update is that of the whole step."""
    model = mlp()
    with watched(model, Sam(model.parameters())) as hand:

        def closure() -> None:
            hand.zero()
            hand.backward(square, model)
            hand.note_gradients()

        for seed in range(2):
            square(model, seed).backward()
            hand.before_step()
            hand.optimizer.step(closure)
            hand.after_step()


@pytest.mark.parametrize("measures", [DEFAULT_MEASURES, PARAMETER_MEASURES])
def test_backward_passes_and_no_step_are_told_at_the_end(measures: Any) -> None:
    model = mlp()
    optimizer = Sam(model.parameters())
    recorder = Recorder(model, optimizer, measures=measures)
    for _ in range(2):
        square(model).backward()
        optimizer.first_step()
        square(model).backward()
        optimizer.second_step()
    with pytest.warns(UserWarning, match="no step was seen .of Sam.*whose `step` is called.*None"):
        recorder.close()
    recorder.close()  # says it once
    with Recorder(model, optimizer, measures=measures):
        pass  # nothing happened: nothing to say


@pytest.mark.parametrize("measures", [DEFAULT_MEASURES, PARAMETER_MEASURES])
@pytest.mark.parametrize("is_replaced", [True, False])
def test_steps_that_are_seen_no_more_are_told_at_the_end(is_replaced: bool, measures: Any) -> None:
    """Another optimizer takes over, as where layers are unfrozen; or one of two steps no more."""
    model = mlp()
    optimizers = [sgd(model[0]), sgd(model[2])]
    recorder = Recorder(model, optimizers, every=2, measures=measures)
    for step in range(10):
        if step == 3:
            optimizers = [torch.optim.Adam(model.parameters())] if is_replaced else optimizers[:1]
        model.zero_grad()
        square(model, step).backward()
        for optimizer in optimizers:
            optimizer.step()
    with pytest.warns(UserWarning, match="nothing after step 2: .*no step was seen .of SGD and"):
        recorder.close()
    recorder.close()  # it is said once
    assert recorder.trace.steps.tolist() == [0, 2]


def test_weights_that_are_changed_after_the_last_step_need_no_word() -> None:
    """Averages are swapped in and out, the best weights come back, a last part is thrown away."""
    model, best = mlp(), mlp().state_dict()
    with watched(model) as hand:
        for seed in range(2):
            hand.train(square, model, seed)
        square(model).backward()
        for _ in range(3):
            model.load_state_dict(best)


def test_no_warning_hides_an_exception() -> None:
    model = mlp()
    with suppress(ZeroDivisionError), Recorder(model, sgd(model)):
        square(model).backward()
        raise ZeroDivisionError


class Lookahead(torch.optim.Optimizer):
    """Every second step goes half way back to the slow weights."""

    def __init__(self, params: Any, lr: float) -> None:
        self.optimizer, self.n = torch.optim.SGD(params, lr), 0
        super().__init__(self.optimizer.param_groups, {})
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.optimizer.step()
        self.n += 1
        if self.n % 2 == 0:
            for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                slow.add_(p - slow, alpha=0.5)
                p.copy_(slow)


class Logged(torch.optim.SGD):
    """Its step calls that of its parent: they are one."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Ignores(torch.optim.SGD):
    """It is given a closure and does not call it."""

    def step(self, closure: Any = None) -> Any:
        return super().step()


@pytest.mark.parametrize("kind", [Lookahead, Logged, Ignores])
def test_a_wrapper_is_watched_itself_although_another_step_is_inside(kind: Any) -> None:
    """Also after a step that failed."""
    model = mlp()
    sgd(model)  # from now on torch tells of steps of SGD and of those who inherit it
    optimizer = kind(model.parameters(), lr=0.1)
    group = getattr(optimizer, "optimizer", optimizer).param_groups[0]
    with watched(model, optimizer) as hand:
        for seed in range(4):
            hand.zero()
            hand.backward(square, model, seed)
            if seed == 1:
                group["lr"] = "wrong"
                with pytest.raises((TypeError, RuntimeError)):
                    optimizer.step()
                group["lr"] = 0.1
                hand.forget()
                continue
            with hand.step():
                optimizer.step(lambda: None) if kind is Ignores else optimizer.step()


def test_optimizers_that_step_while_gradients_arrive() -> None:
    """One per parameter, in hooks of the backward pass, which frees the gradient at once."""
    model = mlp()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def on_gradient(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    wants, befores = [], []
    with Recorder(model, list(optimizers.values())) as recorder:
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(on_gradient)
        for seed in range(2):
            befores.append(weights(model))
            z = model(inputs(seed=seed))
            wants.append((2 * z / 6).detach().double().norm().item())
            z.square().mean().backward()
    befores.append(weights(model))
    assert len(recorder.trace) == 2
    for step in range(2):
        got = value(recorder.trace, "output_grad_norm", "2", step)
        assert got == pytest.approx(wants[step], rel=1e-5)
        assert_updates(recorder.trace, step, befores[step], befores[step + 1])


@pytest.mark.parametrize("n_recorders", [1, 2])
def test_what_hooks_of_others_do_to_a_step_belongs_to_it(n_recorders: int) -> None:
    """Clipping before and after the step, as in a Wasserstein GAN, by hooks that came later."""
    model = mlp()
    hand = ByHand(model, sgd(model))
    recorders = [Recorder(model, hand.optimizer) for _ in range(n_recorders)]

    def clip_gradients(*_: Any) -> None:
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        hand.before_step()

    def clip_weights(*_: Any) -> None:
        for parameter in model.parameters():
            parameter.data.clamp_(-0.2, 0.2)
        hand.after_step()

    hand.optimizer.register_step_pre_hook(clip_gradients)
    hand.optimizer.register_step_post_hook(clip_weights)
    for seed in range(3):
        hand.zero()
        hand.backward(square, model, seed)
        hand.optimizer.step()
    for recorder in recorders:
        recorder.close()
        hand.compare(recorder.trace)


def test_a_later_hook_that_raises_leaves_the_next_step_right() -> None:
    model = mlp()
    fails = [False, True, False]

    def check(*_: Any) -> None:
        if fails.pop(0):
            raise ArithmeticError

    with watched(model) as hand:
        hand.optimizer.register_step_pre_hook(check)
        for seed in range(3):
            hand.zero()
            hand.backward(square, model, seed)
            if fails[0]:
                with pytest.raises(ArithmeticError):
                    hand.optimizer.step()
                hand.forget()
                continue
            hand.update()
    assert list(hand.optimizer._optimizer_step_pre_hooks.values()) == [check]


# -- several optimizers ------------------------------------------------------------------------


def test_weights_that_another_optimizer_moves_have_no_update() -> None:
    """As Muon for the matrices inside and AdamW for the rest."""
    model = mlp()
    rest = torch.optim.AdamW([model[0].weight, model[0].bias, model[2].bias], lr=0.01)
    optimizer = torch.optim.SGD([model[2].weight], lr=0.1)
    optimizer.register_step_post_hook(lambda *_: rest.step())
    trace = recorded(model, lambda step: square(model, step), optimizer, n_steps=2)
    for measure in ("update_norm", "update_changed_fraction"):
        for name in ("0.weight", "0.bias", "2.bias"):
            assert np.isnan(trace.values[measure][:, trace.sites.index(name)]).all()
        assert (trace.values[measure][:, trace.sites.index("2.weight")] > 0).all()
    assert (trace.values["grad_norm"][:, trace.sites.index("0.weight")] > 0).all()


@pytest.mark.parametrize("n_critic", [1, 3])
def test_a_gan_of_two_optimizers(n_critic: int) -> None:
    """The discriminator's first step of a round counts, with the generator's."""
    model = Net(lambda net: None, G=nn.Linear(4, 4), D=mlp())
    d, g = sgd(model.D), sgd(model.G)
    z, real, hand = inputs(seed=5), inputs(seed=6), ByHand(model)
    befores: list[dict[str, dict[str, Tensor]]] = []
    with Recorder(model, [d, g]) as recorder:
        for _ in range(3):
            befores.append({"start": weights(model)})
            for i in range(n_critic):
                d.zero_grad()
                with hand.forward() if i == 0 else nullcontext():
                    loss = model.D(model.G(z).detach()).square().mean()
                    loss = loss + (model.D(real) - 1).square().mean()
                loss.backward()
                d.step()
                befores[-1].setdefault("after d", weights(model))
            g.zero_grad()
            hand.backward(lambda: (model.D(model.G(z)) - 1).square().mean())
            g.step()
            befores[-1]["end"] = weights(model)
            hand.step_index += 1
    trace = recorder.trace
    assert trace.steps.tolist() == [0, 1, 2]
    for step, before in enumerate(befores):
        names = list(before["start"])
        of_d = [name for name in names if name.startswith("D")]
        of_g = [name for name in names if name.startswith("G")]
        assert_updates(trace, step, before["start"], before["after d"], of_d)
        assert_updates(trace, step, before["start"], before["end"], of_g)
        want = hand._outputs[step]["D.2"][-1].grad.norm().item()
        got = value(trace, "output_grad_norm", "G", step)
        assert got == pytest.approx(hand._outputs[step]["G"][-1].grad.norm().item(), rel=1e-5)
        assert value(trace, "output_grad_norm", "D.2", step) >= want
