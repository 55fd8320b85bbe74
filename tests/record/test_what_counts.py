"""∂L/∂z of the loss on which `backward` was called for the step, and nothing else."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from byhand import ByHand, batch, inputs, loss_of, mlp, said, sgd, small_net, train_by_hand, value
from byhand import watched_step as train_step
from torch import Tensor, nn
from torch.func import functional_call

from gradflow import Recorder
from gradflow.record import DEFAULT_MEASURES, Measure


def norm_of(loss: Tensor, z: Tensor) -> float:
    return torch.autograd.grad(loss, z)[0].double().norm().item()


# -- interludes --------------------------------------------------------------------------------


def test_a_derivative_inside_the_loss_is_no_loss() -> None:
    """A physics-informed network: u and du/dx, both from one forward pass."""
    model = mlp(1)
    optimizer = sgd(model, 0.0)
    x = torch.linspace(0, 1, 16)[:, None].requires_grad_()

    def loss() -> tuple[Tensor, Tensor]:
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return u, (slope + u).square().mean()

    with Recorder(model, optimizer) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            loss()[1].backward()
            optimizer.step()
    u, whole = loss()
    want = norm_of(whole, u)
    for step in range(2):
        got = value(recorder.trace, "output_grad_norm", "2", step)
        assert got == pytest.approx(want, rel=1e-5)


def test_another_networks_loss_does_not_count() -> None:
    """A generator's pass through a discriminator that is frozen meanwhile, and one that is not."""
    for freezes in (True, False):
        model, generator = mlp(), nn.Linear(4, 4)
        optimizer, other = sgd(model), sgd(generator)
        hand, z = ByHand(model), inputs()
        with Recorder(model, optimizer) as recorder:
            for _ in range(3):
                model.requires_grad_(True)
                optimizer.zero_grad()
                for part in (generator(z).detach(), inputs(seed=9)):
                    with hand.forward():
                        loss = (model(part) - 1).square().mean()
                    loss.backward()
                with hand.step():
                    optimizer.step()
                model.requires_grad_(not freezes)
                other.zero_grad()
                (10 * model(generator(z))).mean().backward()
                other.step()
        hand.compare(recorder.trace)
        assert recorder.skipped_steps == []


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("by", ["grad", "backward", "inputs"])
def test_an_attack_before_the_step_does_not_count(by: str, set_to_none: bool) -> None:
    model = mlp()
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(model, optimizer) as recorder:
        for step in range(3):
            x = inputs(seed=step).requires_grad_()
            loss = model(x).square().sum()
            if by == "grad":
                (slope,) = torch.autograd.grad(loss, x)
            else:
                loss.backward(inputs=[x] if by == "inputs" else None)
                slope = x.grad
            optimizer.zero_grad(set_to_none=set_to_none)
            with hand.forward():
                loss = (model((x + 0.1 * slope.sign()).detach()) - 1).square().mean()
            loss.backward()
            with hand.step():
                optimizer.step()
    hand.compare(recorder.trace)
    assert recorder.skipped_steps == []


def test_inner_steps_count_through_the_outer_loss_alone() -> None:
    """MAML: the outer loss goes back through the inner gradient."""
    model = mlp()
    optimizer = sgd(model, 0.0)
    x, y = inputs(5, 4), inputs(5, 4, seed=4)

    def losses() -> tuple[Tensor, Tensor, Tensor]:
        weights = dict(model.named_parameters())
        z = functional_call(model, weights, (x,))
        grads = torch.autograd.grad(z.square().mean(), list(weights.values()), create_graph=True)
        fast = {k: w - 0.5 * g for (k, w), g in zip(weights.items(), grads, strict=True)}
        query = functional_call(model, fast, (y,))
        return z, query, (query - 1).square().mean()

    with Recorder(model, optimizer) as recorder:
        losses()[2].backward()
        optimizer.step()
    z, query, outer = losses()
    grads = torch.autograd.grad(outer, [z, query])
    want = sum(grad.double().square().sum() for grad in grads).sqrt().item()
    assert value(recorder.trace, "output_grad_norm", "2") == pytest.approx(want, rel=1e-5)


def test_a_product_inside_the_step_does_not_count() -> None:
    """AdaHessian, SophiaH: a backward pass and a forward pass of the optimizer's own."""
    model = mlp()
    x = inputs()

    class Hessian(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            weights = self.param_groups[0]["params"]
            ones = [torch.ones_like(w) for w in weights]
            products = torch.autograd.grad([w.grad for w in weights], weights, ones)
            with torch.enable_grad():
                (100 * model(x)).sum().backward()
            with torch.no_grad():
                for w, h in zip(weights, products, strict=True):
                    w.sub_(0.1 * h.sign())

    optimizer = Hessian(model.parameters(), {})
    z = model(x)
    want = norm_of((z - 1).square().mean(), z)
    with Recorder(model, optimizer) as recorder:
        with pytest.warns(UserWarning, match="create_graph=True"):
            (model(x) - 1).square().mean().backward(create_graph=True)
        optimizer.step()
        model.zero_grad()
    assert value(recorder.trace, "output_grad_norm", "2") == pytest.approx(want, rel=1e-5)
    assert recorder.trace.sizes[recorder.trace.sites.index("2")] == 6, "one forward pass"


# -- several backward passes -------------------------------------------------------------------


def test_backward_passes_meet_as_vectors_also_for_a_measure_of_ones_own() -> None:
    """L₁ + L₂ in two passes is as in one; L − L is nothing."""
    own = Measure("sum", "output gradient", "Σg", "", function=lambda grad: grad.sum())
    model = mlp(n_out=2)
    optimizer, x = sgd(model, 0.0), inputs()
    with Recorder(model, optimizer, measures=[*DEFAULT_MEASURES, own]) as recorder:
        for parts in ((1.0, 2.0), (3.0,), (2.0, -2.0)):
            optimizer.zero_grad()
            loss = model(x).square().sum()
            for i, part in enumerate(parts):
                (part * loss).backward(retain_graph=i < len(parts) - 1)
            optimizer.step()
    trace = recorder.trace
    for site in ("0", "1", "2"):
        for measure in ("output_grad_norm", "output_grad_rms", "sum"):
            whole = value(trace, measure, site, 1)
            assert abs(whole) > 0.01
            assert value(trace, measure, site, 0) == pytest.approx(whole, rel=1e-5)
        assert value(trace, "output_grad_norm", site, 2) == pytest.approx(0, abs=1e-6)


def test_a_graph_that_is_kept_and_not_used_again_costs_no_precision() -> None:
    model = mlp()
    train_by_hand(model, lambda step, _: model(inputs(seed=step)).square().sum(), retain_graph=True)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_pass_of_two_whose_gradient_was_zeroed_is_gone_alone(set_to_none: bool) -> None:
    """Through one forward pass: the second backward pass stays."""
    model = mlp()
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(model, optimizer) as recorder:
        for seed in range(3):
            optimizer.zero_grad(set_to_none=set_to_none)
            with hand.forward():
                z = model(inputs(seed=seed))
            with hand.aside():
                z.square().sum().backward(retain_graph=True)
            optimizer.zero_grad(set_to_none=set_to_none)
            z.sum().backward()
            with hand.step():
                optimizer.step()
    hand.compare(recorder.trace)
    assert recorder.skipped_steps == []


def test_a_gradient_that_is_zeroed_past_autograd_takes_its_pass_with_it() -> None:
    """`.data.zero_()`, as older loops write it, leaves the gradient the same tensor and version."""
    model = mlp()
    optimizer, hand = sgd(model), ByHand(model)
    with Recorder(model, optimizer) as recorder:
        for seed in range(3):
            optimizer.zero_grad()
            with hand.aside():
                model(inputs(seed=seed)).square().sum().backward()
            for parameter in model.parameters():
                parameter.grad.data.zero_()
            with hand.forward():
                loss = model(inputs()).square().mean()
            loss.backward()
            model[0].weight.grad.data.zero_()  # one of several: the pass stays
            model[2].bias.grad.data.zero_()
            with hand.step():
                optimizer.step()
    hand.compare(recorder.trace)
    assert recorder.skipped_steps == []


def test_gradients_that_are_scaled_or_replaced_between_passes_are_still_there() -> None:
    model = mlp()

    def change(step: int) -> None:
        for parameter in model.parameters():
            if step == 0:
                parameter.grad.mul_(0.5)
            elif step == 1:
                parameter.grad = parameter.grad.clone()
        if step == 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    train_by_hand(
        model, lambda _, part: model(inputs(seed=part)).square().mean(), n_passes=2, after=change
    )


def test_a_step_without_a_gradient_has_no_outputs() -> None:
    """The loop zeroed the gradients right before the step."""
    for set_to_none in (True, False):
        model = mlp()
        optimizer = sgd(model)
        with Recorder(model, optimizer) as recorder:
            model(inputs()).square().sum().backward()
            optimizer.zero_grad(set_to_none=set_to_none)
            optimizer.step()
        assert "2" not in recorder.trace.sites


def test_gradients_that_are_assigned_come_from_no_backward_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = mlp()
    optimizer = sgd(model)
    with Recorder(model, optimizer) as recorder:
        for _ in range(2):
            loss = model(inputs()).square().sum()
            for p, g in zip(
                model.parameters(),
                torch.autograd.grad(loss, list(model.parameters())),
                strict=True,
            ):
                p.grad = g
            optimizer.step()
    assert "2" not in recorder.trace.sites
    assert value(recorder.trace, "grad_norm", "2.weight") > 0
    assert said(caplog) == [
        "gradflow does not take outputs in a step: no backward pass had brought the parameters a "
        "gradient that was still there."
    ]


def test_gradients_that_come_from_a_copy_of_the_model(caplog: pytest.LogCaptureFixture) -> None:
    """First-order meta-learning: no layer of the model runs, and its training goes on."""
    model, x = mlp(), inputs()
    optimizer = sgd(model)
    with Recorder(model, optimizer) as recorder:
        for _ in range(2):
            task = copy.deepcopy(model)
            inner = sgd(task)
            for _ in range(2):
                inner.zero_grad()
                task(x).square().mean().backward()
                inner.step()
            for parameter, adapted in zip(model.parameters(), task.parameters(), strict=True):
                parameter.grad = (parameter - adapted).detach()
            want = model[0].weight.grad.double().norm().item()
            optimizer.step()
    assert value(recorder.trace, "grad_norm", "0.weight", 1) == pytest.approx(want, rel=1e-6)
    (sentence,) = said(caplog)
    assert "no layer ran through its hooks" in sentence


def test_a_layer_that_returns_its_own_parameter() -> None:
    """One leaf in all forward passes: the right norm, and no hook left on it."""

    class Prompt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Parameter(torch.ones(3, 4))

        def forward(self) -> Tensor:
            return self.tokens

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt, self.head = Prompt(), mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.prompt().mean(0))

    model = Net()
    optimizer, x = sgd(model, 0.0), inputs(8, 4)
    tokens, n_hooks = model.prompt.tokens, set()
    losses = [lambda part=part: model(part).square().mean() for part in x.chunk(2)]
    want = sum(norm_of(loss(), tokens) ** 2 for loss in losses) ** 0.5
    with Recorder(model, optimizer) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            for loss in losses:
                loss().backward()
            optimizer.step()
            n_hooks.add(len(tokens._backward_hooks))
    assert n_hooks == {0}
    for step in range(4):
        got = value(recorder.trace, "output_grad_norm", "prompt", step)
        assert got == pytest.approx(want, rel=1e-5)


# -- reentrant backward passes -----------------------------------------------------------------


def test_checkpointed_layers_hold_all_trainable_weights() -> None:
    """LoRA with reentrant checkpointing: the backward pass outside comes to no parameter itself."""
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self, run: Callable[..., Any] | None) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.middle, self.last = (nn.Linear(4, 4) for _ in range(3))
            self.norm = nn.LayerNorm(4)
            self.run = run
            for layer in (self.first, self.last, self.norm):
                layer.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x).requires_grad_()
            hidden = self.middle(hidden) if self.run is None else self.run(self.middle, hidden)
            return self.last(self.norm(hidden))

    def run_reentrant(*args: Any) -> Any:
        return checkpoint(*args, use_reentrant=True)

    traces = []
    for run in (None, run_reentrant):
        model = Net(run)
        optimizer = sgd(model)
        with Recorder(model, optimizer) as recorder:
            for step in range(2):
                optimizer.zero_grad()
                model(inputs(5, 4, seed=step)).square().mean().backward()
                optimizer.step()
        traces.append(recorder.trace)
    for site in ("middle", "norm", "last"):
        want = value(traces[0], "output_grad_norm", site, 1)
        assert value(traces[1], "output_grad_norm", site, 1) == pytest.approx(want, rel=1e-5)


def test_a_backward_pass_that_raised_does_not_count() -> None:
    """Its gradients have partly arrived; those of the next pass are added to them."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise ZeroDivisionError

    model = small_net()
    optimizer, hand = sgd(model), ByHand(model)
    images, labels = batch()
    with Recorder(model, optimizer) as recorder:
        hidden = model[:3](images)
        with pytest.raises(ZeroDivisionError):
            model[3:](Fails.apply(hidden)).sum().backward()
        with hand.forward():
            loss = loss_of(model)
        loss.backward()
        with hand.step():
            optimizer.step()
        train_step(hand, optimizer, 2)
    hand.compare(recorder.trace)
