"""Loops that are watched by hand and by a Recorder, and small networks for them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from byhand import ByHand, first
from torch import Tensor, nn
from torch.optim import Optimizer

from gradflow import Recorder, Trace


@contextmanager
def watched(
    model: nn.Module,
    optimizer: Any = None,
    *,
    unpack: Callable[[Any], Tensor] = first,
    skipped: Sequence[int] = (),
    every: int = 1,
    **options: Any,
) -> Iterator[ByHand]:
    """What trains inside is recorded too, and in the end every value is compared."""
    hand = ByHand(model, optimizer or sgd(model), unpack)
    with Recorder(model, hand.optimizer, every=every, **options) as recorder:
        hand.recorder = recorder
        yield hand
    hand.compare(recorder.trace, range(0, hand.step_index, every))
    assert recorder.skipped_steps == list(skipped)


def train_by_hand(
    model: nn.Module,
    loss: Callable[[int, int], Tensor],
    *,
    n_steps: int = 3,
    n_passes: int = 1,
    optimizer: Any = None,
    before: Callable[[int, Optimizer], None] = lambda step, optimizer: None,
    after: Callable[[int], None] = lambda step: None,
    set_to_none: bool = True,
    retain_graph: bool = False,
    **options: Any,
) -> Trace:
    """Train on `loss(step, part)`, each step of so many passes, and compare every value.

    `before` is told of each step, `after` of each backward pass.
    """
    with watched(model, optimizer, **options) as hand:
        for step in range(n_steps):
            before(step, hand.optimizer)
            hand.zero(set_to_none)
            for part in range(n_passes):
                hand.backward(loss, step, part, retain_graph=retain_graph)
                after(step)
            hand.update()
    return hand.recorder.trace


def recorded(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    optimizer: Any = None,
    *,
    n_steps: int = 1,
    n_passes: int = 1,
    **options: Any,
) -> Trace:
    """The same of a training that is not compared; `loss` is told how many passes came before."""
    optimizer = optimizer or sgd(model)
    with Recorder(model, optimizer, **options) as recorder:
        for step in range(n_steps):
            model.zero_grad()
            for part in range(n_passes):
                loss(step * n_passes + part).backward()
            optimizer.step()
    return recorder.trace


# -- networks and their losses -----------------------------------------------------------------


class Net(nn.Module):
    """A forward pass of its own over layers and parameters, by name."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        return self._run(self, *args)


def mlp(n_in: int = 4, n_out: int = 1, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_in, 8), activation(), nn.Linear(8, n_out))


def inputs(*shape: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (6, 4), generator=generator)


def square(model: nn.Module, seed: int = 3) -> Tensor:
    return model(inputs(seed=seed)).square().mean()


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def batch(n: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 6, 6, generator=generator), torch.arange(n) % 3


def loss_of(model: Callable[[Tensor], Tensor], seed: int = 1, n: int = 8) -> Tensor:
    images, labels = batch(n, seed)
    return nn.functional.cross_entropy(model(images), labels)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def plain_step(model: nn.Module, optimizer: Optimizer, seed: int = 1) -> None:
    optimizer.zero_grad()
    loss_of(model, seed).backward()
    optimizer.step()


def draw(*shape: int, seed: int = 0) -> Callable[..., Tensor]:
    """Another batch of this shape at each call."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(shape, generator=generator)
