"""Random small networks in random training loops: every number as plain autograd has it in float64,
and the training bit by bit as without a Recorder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from byhand import ByHand
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from loops import Net as Own
from torch import Tensor, nn

from gradflow import Recorder

WIDTH = 3


# -- networks ----------------------------------------------------------------------------------


def bias() -> nn.Module:
    """A layer of no known type."""
    return Own(lambda net, x: x * net.bias.exp(), bias=nn.Parameter(torch.randn(WIDTH)))


def block() -> nn.Module:
    """A layer inside, and a parameter of its own."""
    inner, gain = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.ones(()))
    return Own(lambda net, x: net.inner(x) * net.gain, inner=inner, gain=gain)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "relu": nn.ReLU,
    "relu_": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "norm": lambda: nn.LayerNorm(WIDTH),
    "batchnorm": lambda: nn.BatchNorm1d(WIDTH),
    "bias": bias,
    "block": block,
    "tuple": lambda: nn.LSTM(WIDTH, WIDTH),
}


@dataclass(frozen=True)
class Move:
    """What happens in the network: a layer runs, alone or beside what it is added to."""

    layer: int
    kind: str = "plain"


class Net(nn.Module):
    def __init__(self, names: list[str], moves: list[Move], frozen: list[int], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(LAYERS[name]() for name in names)
        self.head = nn.Linear(WIDTH, 2)
        self.moves = moves
        for i in frozen:
            self.layers[i % len(names)].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for move in self.moves:
            layer = self.layers[move.layer % len(self.layers)]
            if move.kind == "in place":
                x = x * 1
                x.mul_(0.5)
            before = x.clone() if move.kind == "branch" else None
            if move.kind == "aside":
                with torch.no_grad():
                    layer(x.clone())
            x = run(layer, x)
            if before is not None:
                x = x * 1
                x += before
            if move.kind == "twice":
                x = run(layer, x)
        return self.head(x)


# They need what they gave for their derivative: nothing may change it in place.
KEEPS_OUTPUT = ("Relu", "Tanh", "Squeeze", "Cudnn", "Stack", "Transpose", "Slice", "Unbind")


def run(layer: nn.Module, x: Tensor) -> Tensor:
    is_kept = x.grad_fn is None or any(name in x.grad_fn.name() for name in KEEPS_OUTPUT)
    out = layer(x * 1 if is_kept and getattr(layer, "inplace", False) else x)
    return out[0] if isinstance(out, tuple) else out


# -- loops -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One forward pass of a step and what comes after it."""

    kind: str  # how it comes to gradients
    before: str  # what happens before it
    weight: float


@dataclass(frozen=True)
class Loop:
    optimizer: str
    steps: list[list[Part]]
    interval: int
    set_to_none: bool
    clip: bool
    seed: int


class Run:
    """A loop over a network, watched by hand."""

    def __init__(self, net: Net, loop: Loop) -> None:
        self.net, self.loop = net, loop
        self.optimizers: list[torch.optim.Optimizer] = []
        for part in (net.layers, net.head) if loop.optimizer == "two" else (net,):
            parameters = list(part.parameters())
            if parameters and (loop.optimizer == "adamw" or part is net.head):
                self.optimizers.append(torch.optim.AdamW(parameters, lr=0.01))
            elif parameters:
                self.optimizers.append(torch.optim.SGD(parameters, lr=0.05, momentum=0.5))
        self.hand = ByHand(net)
        self.generator = torch.Generator().manual_seed(loop.seed)

    def images(self) -> Tensor:
        return torch.randn(4, WIDTH, generator=self.generator)

    def zero(self) -> None:
        self.hand.zero(self.loop.set_to_none)

    def interlude(self, kind: str, is_first: bool) -> None:
        """Things that people do between passes, and that belong to no step."""
        if kind == "evaluates":
            self.net.eval()
            with torch.no_grad():
                self.net(self.images())
            self.net.train()
        elif kind == "acts":
            self.net(self.images())
        elif kind == "derives":
            z = self.net(self.images())
            torch.autograd.grad(z.square().sum(), self.net.head.weight, retain_graph=True)
        elif kind == "attacks":
            x = self.images().requires_grad_()
            torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        elif kind == "throws away" and is_first:  # or else what counts would go with it
            self.net(self.images()).square().sum().backward()
            self.zero()

    def backward(self, kind: str, weight: float) -> None:
        with self.hand.forward():
            z = self.net(self.images())
        loss = weight * (z - 1).square().mean()
        if kind == "two":
            loss.backward(retain_graph=True)
            z.abs().sum().backward()
        elif kind == "kept":
            loss.backward(retain_graph=True)
        elif kind == "inputs":
            loss.backward(inputs=[p for p in self.net.parameters() if p.requires_grad])
        elif kind == "penalty":
            with self.hand.aside():
                (g,) = torch.autograd.grad(loss, self.net.head.weight, create_graph=True)
            (loss + g.square().sum()).backward()
        elif kind == "thrown through":  # the first of two backward passes is zeroed
            with self.hand.aside():
                loss.backward(retain_graph=True)
            self.zero()
            loss.backward()
        else:
            loss.backward()

    def gradients(self, parts: list[Part]) -> None:
        self.zero()
        for i, part in enumerate(parts):
            self.interlude(part.before, i == 0)
            is_late = part.kind == "thrown through" and i
            self.backward("plain" if is_late else part.kind, part.weight)
        if self.loop.clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
        self.hand.before_step()

    def train(self) -> None:
        for parts in self.loop.steps:
            if self.loop.optimizer == "closure":
                self.optimizers[0].step(partial(self.gradients, parts))
            else:
                self.gradients(parts)
                for optimizer in self.optimizers:
                    optimizer.step()
            self.hand.after_step()


# -- drawing them ------------------------------------------------------------------------------

MOVES = st.builds(
    Move,
    st.integers(0, 4),
    st.sampled_from(["plain", "plain", "in place", "branch", "aside", "twice"]),
)
NETS = st.fixed_dictionaries({
    "names": st.lists(st.sampled_from(list(LAYERS)), min_size=1, max_size=4),
    "moves": st.lists(MOVES, min_size=1, max_size=5),
    "frozen": st.lists(st.integers(0, 3), max_size=2),
    "seed": st.integers(0, 99),
})  # fmt: skip
PARTS = st.builds(
    Part,
    st.sampled_from(["plain", "plain", "two", "kept", "inputs", "penalty", "thrown through"]),
    st.sampled_from(["", "", "evaluates", "acts", "derives", "attacks", "throws away"]),
    st.sampled_from([1.0, 0.5, -2.0]),
)
LOOPS = st.builds(
    Loop,
    st.sampled_from(["sgd", "adamw", "closure", "two"]),
    st.lists(st.lists(PARTS, min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)


def check(net: dict[str, Any], loop: Loop) -> None:
    plain, watched = Run(Net(**net), loop), Run(Net(**net), loop)
    plain.train()
    assume(all(x.isfinite().all() for x in plain.net.state_dict().values()))  # else it diverged
    random = torch.get_rng_state()
    with Recorder(watched.net, watched.optimizers, every=loop.interval) as recorder:
        watched.train()
    watched.hand.compare(recorder.trace, steps=range(0, len(loop.steps), loop.interval))
    assert recorder.skipped_steps == []
    assert torch.equal(random, torch.get_rng_state())
    states = (run.net.state_dict().values() for run in (plain, watched))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    assert not any(module._forward_hooks for module in watched.net.modules())


def test_random_training_is_recorded_as_by_hand() -> None:
    examples(30)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_much_random_training_is_recorded_as_by_hand() -> None:
    examples(300)


def examples(n: int) -> None:
    settings(
        max_examples=n,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(net=NETS, loop=LOOPS)(check))()
