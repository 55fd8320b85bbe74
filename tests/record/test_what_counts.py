"""∂L/∂z of the loss on which `backward` was called for the step, and nothing else."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from byhand import said, value
from loops import Net, inputs, mlp, recorded, sgd, square, train_by_hand, watched
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.utils.checkpoint import checkpoint

from gradflow import Recorder
from gradflow.record import DEFAULT_MEASURES, Measure


def norm_of(loss: Tensor, z: Tensor) -> float:
    return torch.autograd.grad(loss, z)[0].double().norm().item()


# -- interludes --------------------------------------------------------------------------------


def evaluates(model: nn.Module) -> None:
    model.eval()
    square(model, seed=9)
    model.train()


def without_grad(model: nn.Module, mode: Any) -> None:
    with mode():
        square(model, seed=9)


def derives(model: nn.Module) -> None:
    torch.autograd.grad(square(model), model[2].weight)


def attacks(model: nn.Module) -> None:
    x = inputs().requires_grad_()
    torch.autograd.grad(model(x).square().sum(), x, create_graph=True)


def attacks_its_inputs(model: nn.Module) -> None:
    x = inputs().requires_grad_()
    model(x).square().sum().backward(inputs=[x])


def trains_another_through_it(model: nn.Module) -> None:
    """As a generator through a discriminator that is frozen meanwhile."""
    generator = nn.Linear(4, 4)
    model.requires_grad_(False)
    model(generator(inputs())).mean().backward()
    model.requires_grad_(True)


def differentiates_twice(model: nn.Module) -> None:
    x = inputs()
    torch.autograd.functional.jacobian(model, x)
    torch.autograd.functional.hvp(lambda z: model(z).sum(), x, torch.ones_like(x))


def forward_ad(model: nn.Module) -> None:
    x = inputs()
    with torch.autograd.forward_ad.dual_level():
        model(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize(
    ("when", "measures"),
    [
        ("before", DEFAULT_MEASURES),
        ("between", DEFAULT_MEASURES),
        ("after", DEFAULT_MEASURES),
        ("after", ["output_rms", "output_mean"]),  # by which no gradient is read
    ],
)
@pytest.mark.parametrize(
    "interlude",
    [
        lambda model: square(model, seed=9) * 100,  # acts
        evaluates,
        partial(without_grad, mode=torch.no_grad),
        partial(without_grad, mode=torch.inference_mode),
        derives,
        attacks,
        attacks_its_inputs,
        trains_another_through_it,
        lambda model: jacrev(model)(inputs()),
        differentiates_twice,
        forward_ad,
        lambda model: torch.jit.trace(model, inputs(), check_trace=False),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_happens_beside_the_step_is_no_part_of_it(
    interlude: Callable[[nn.Module], object], when: str, measures: Any
) -> None:
    model = mlp(n_out=2, activation=nn.ReLU)
    with watched(model, measures=measures) as hand:
        for seed in range(2):
            hand.zero()
            if when == "before":
                interlude(model)
            with hand.forward():
                loss = square(model, seed)
            if when == "between":
                interlude(model)
            loss.backward()
            if when == "after":
                interlude(model)
            hand.update()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("by", ["an attack", "another network's loss"])
def test_gradients_that_are_zeroed_before_the_step_do_not_count(by: str, set_to_none: bool) -> None:
    model, generator = mlp(), nn.Linear(4, 4)
    with watched(model) as hand:
        for seed in range(3):
            x = inputs(seed=seed).requires_grad_()
            if by == "an attack":
                model(x).square().sum().backward()
                x = (x + 0.1 * x.grad.sign()).detach()
            else:
                (10 * model(generator(x))).mean().backward()
            hand.zero(set_to_none)
            for part in (x.detach(), inputs(seed=9)):
                hand.backward(lambda part=part: (model(part) - 1).square().mean())
            hand.update()


def test_a_derivative_inside_the_loss_is_no_loss() -> None:
    """A physics-informed network: u and du/dx, both from one forward pass."""
    model = mlp(1)
    x = torch.linspace(0, 1, 16)[:, None].requires_grad_()

    def loss() -> tuple[Tensor, Tensor]:
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return u, (slope + u).square().mean()

    trace = recorded(model, lambda _: loss()[1], sgd(model, 0.0), n_steps=2)
    u, whole = loss()
    want = norm_of(whole, u)
    for step in range(2):
        assert value(trace, "output_grad_norm", "2", step) == pytest.approx(want, rel=1e-5)


def test_inner_steps_count_through_the_outer_loss_alone() -> None:
    """MAML: the outer loss goes back through the inner gradient."""
    model = mlp()
    x, y = inputs(5, 4), inputs(5, 4, seed=4)

    def losses() -> tuple[Tensor, Tensor, Tensor]:
        weights = dict(model.named_parameters())
        z = functional_call(model, weights, (x,))
        grads = torch.autograd.grad(z.square().mean(), list(weights.values()), create_graph=True)
        fast = {k: w - 0.5 * g for (k, w), g in zip(weights.items(), grads, strict=True)}
        query = functional_call(model, fast, (y,))
        return z, query, (query - 1).square().mean()

    trace = recorded(model, lambda _: losses()[2], sgd(model, 0.0))
    z, query, outer = losses()
    grads = torch.autograd.grad(outer, [z, query])
    want = sum(grad.double().square().sum() for grad in grads).sqrt().item()
    assert value(trace, "output_grad_norm", "2") == pytest.approx(want, rel=1e-5)


def test_a_product_inside_the_step_does_not_count() -> None:
    """AdaHessian, SophiaH: a backward pass and a forward pass of the optimizer's own."""
    model = mlp()

    class Hessian(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            weights = self.param_groups[0]["params"]
            ones = [torch.ones_like(w) for w in weights]
            products = torch.autograd.grad([w.grad for w in weights], weights, ones)
            with torch.enable_grad():
                (100 * square(model)).backward()
            with torch.no_grad():
                for w, h in zip(weights, products, strict=True):
                    w.sub_(0.1 * h.sign())

    with watched(model, Hessian(model.parameters(), {})) as hand:
        with pytest.warns(UserWarning, match="create_graph=True"):
            hand.backward(square, model, create_graph=True)
        with hand.aside():
            hand.update()
        hand.zero()


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
    train_by_hand(model, lambda step, _: square(model, step), retain_graph=True)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_pass_of_two_whose_gradient_was_zeroed_is_gone_alone(set_to_none: bool) -> None:
    """Through one forward pass: the second backward pass stays."""
    model = mlp()
    with watched(model) as hand:
        for seed in range(3):
            hand.zero(set_to_none)
            with hand.forward():
                z = model(inputs(seed=seed))
            with hand.aside():
                z.square().sum().backward(retain_graph=True)
            hand.zero(set_to_none)
            z.sum().backward()
            hand.update()


def test_a_gradient_that_is_zeroed_past_autograd_takes_its_pass_with_it() -> None:
    """`.data.zero_()`, as older loops write it, leaves the gradient the same tensor and version."""
    model = mlp()
    with watched(model) as hand:
        for seed in range(3):
            hand.zero()
            square(model, seed).backward()
            for parameter in model.parameters():
                parameter.grad.data.zero_()
            hand.backward(square, model)
            model[0].weight.grad.data.zero_()  # one of several: the pass stays
            model[2].bias.grad.data.zero_()
            hand.update()


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

    train_by_hand(model, lambda _, part: square(model, part), n_passes=2, after=change)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_step_without_a_gradient_has_no_outputs(set_to_none: bool) -> None:
    """The loop zeroed the gradients right before the step."""
    model = mlp()
    with watched(model) as hand:
        square(model).backward()
        hand.zero(set_to_none)
        hand.update()


def test_gradients_that_are_assigned_come_from_no_backward_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = mlp()
    with watched(model) as hand:
        for _ in range(2):
            grads = torch.autograd.grad(square(model), list(model.parameters()))
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.grad = grad
            hand.update()
    assert said(caplog) == [
        "gradflow does not take outputs in a step: no backward pass had brought the parameters a "
        "gradient that was still there."
    ]


def test_gradients_that_come_from_a_copy_of_the_model(caplog: pytest.LogCaptureFixture) -> None:
    """First-order meta-learning: no layer of the model runs, and its training goes on."""
    model = mlp()
    with watched(model) as hand:
        for _ in range(2):
            task = copy.deepcopy(model)
            inner = sgd(task)
            for _ in range(2):
                inner.zero_grad()
                square(task).backward()
                inner.step()
            for parameter, adapted in zip(model.parameters(), task.parameters(), strict=True):
                parameter.grad = (parameter - adapted).detach()
            hand.update()
    (sentence,) = said(caplog)
    assert "no layer ran through its hooks" in sentence


def test_a_model_that_is_trained_in_eval_mode_has_no_outputs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = mlp().eval()
    trace = recorded(model, lambda _: square(model), n_steps=2)
    assert [site for site in trace.sites if "." not in site] == []
    (sentence,) = said(caplog)
    assert "is in eval mode" in sentence


def test_a_layer_that_returns_its_own_parameter() -> None:
    """One leaf in all forward passes: the right norm, and no hook left on it."""
    tokens = nn.Parameter(torch.ones(3, 4))
    model = Net(
        lambda net, x: net.head(x + net.prompt().mean(0)),
        prompt=Net(lambda net: net.tokens, tokens=tokens),
        head=mlp(),
    )
    optimizer, x, n_hooks = sgd(model, 0.0), inputs(8, 4), set()
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


def test_checkpointed_layers_hold_all_trainable_weights() -> None:
    """LoRA with reentrant checkpointing: the backward pass outside comes to no parameter itself."""

    def forward(net: Net, x: Tensor) -> Tensor:
        hidden = net.first(x).requires_grad_()
        return net.last(net.norm(net.run_middle(net.middle, hidden)))

    def traced(run_middle: Callable[..., Any]) -> Any:
        torch.manual_seed(0)
        layers = {name: nn.Linear(4, 4) for name in ("first", "middle", "last")}
        model = Net(forward, **layers, norm=nn.LayerNorm(4), run_middle=run_middle)
        for layer in (model.first, model.last, model.norm):
            layer.requires_grad_(False)
        return recorded(model, lambda step: square(model, step), n_steps=2)

    plain = traced(lambda layer, x: layer(x))
    reentrant = traced(partial(checkpoint, use_reentrant=True))
    for site in ("middle", "norm", "last"):
        want = value(plain, "output_grad_norm", site, 1)
        assert value(reentrant, "output_grad_norm", site, 1) == pytest.approx(want, rel=1e-5)
