"""Networks whose gradient flow is known: each a pure function of its parameters and a seed.

No builder touches PyTorch's global generator: weights come from a generator made from the seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from gradflow.analysis.rates import Label
from gradflow.architectures import Init
from gradflow.nets import ResNet, plain_34
from gradflow.record import Recorder, Trace

SigmoidInit = Literal["xavier", "torch-default"]

# What the weights are drawn in, but for Plain-34: exact ratios are to be compared to nine digits.
PRECISE = torch.float64


def orthogonal_linear(depth: int, width: int, gain: float, seed: int) -> nn.Sequential:
    """z_l = g Q_l z_{l−1} with Q_l orthogonal: every gradient shrinks by exactly g per layer."""
    random = torch.Generator().manual_seed(seed)
    return nn.Sequential(*(_linear(width, gain * _orthogonal(width, random)) for _ in range(depth)))


def gaussian_linear(depth: int, width: int, seed: int) -> nn.Sequential:
    """z_l = W_l z_{l−1} with W of variance 1/n."""
    random = torch.Generator().manual_seed(seed)
    return nn.Sequential(*(_linear(width, _gaussian(width, 1.0, random)) for _ in range(depth)))


def relu_mlp(depth: int, width: int, gain: float, seed: int) -> nn.Sequential:
    """z_l = W_l relu(z_{l−1}) with W of variance 2 g² / n; a gain of 1 is He's initialisation."""
    random = torch.Generator().manual_seed(seed)
    weights = (_gaussian(width, 2 * gain**2, random) for _ in range(depth))
    return _between(nn.ReLU, [_linear(width, weight) for weight in weights])


def sigmoid_mlp(depth: int, width: int, init: SigmoidInit, seed: int) -> nn.Sequential:
    """z_l = W_l σ(z_{l−1}) + b_l, as Xavier or as PyTorch itself initialises a linear layer.

    Xavier: W normal with variance 1/n, b = 0. PyTorch: both uniform with variance 1/(3n).
    """
    random = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(depth):
        if init == "xavier":
            layers.append(_linear(width, _gaussian(width, 1.0, random)))
            continue
        bound = width**-0.5
        weight = _empty(width, width).uniform_(-bound, bound, generator=random)
        layers.append(
            _linear(width, weight, _empty(width).uniform_(-bound, bound, generator=random))
        )
    return _between(nn.Sigmoid, layers)


def batchnorm_mlp(
    depth: int, width: int, seed: int, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """z_l = BatchNorm(W_l φ(z_{l−1})) with W of variance 1/n: its scale means nothing here.

    `nn.Identity` as the activation makes it linear but for the BatchNorm.
    """
    random = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(depth):
        weight = _gaussian(width, 1.0, random)
        blocks.append(nn.Sequential(_linear(width, weight), _batchnorm(width)))
    # Flat, so that every layer has a name of one number and all are one stage.
    return _between(activation, blocks)


class ResidualBlock(nn.Module):
    """x + BatchNorm(W₂ relu(BatchNorm(W₁ relu(x)))), with nothing behind the addition.

    γ of the last norm is 0, as Goyal et al. 2017 start it: the block begins as the identity.
    """

    def __init__(self, width: int, random: torch.Generator) -> None:
        super().__init__()
        self.relu1 = nn.ReLU()
        self.linear1 = _linear(width, _gaussian(width, 2.0, random))
        self.norm1 = _batchnorm(width)
        self.relu2 = nn.ReLU()
        self.linear2 = _linear(width, _gaussian(width, 2.0, random))
        self.norm2 = _batchnorm(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.norm1(self.linear1(self.relu1(x)))
        branch = self.norm2(self.linear2(self.relu2(branch)))
        return x + branch


def identity_residual(n_blocks: int, width: int, seed: int) -> nn.Sequential:
    """Residual blocks that begin as the identity, between an orthogonal stem and head."""
    random = torch.Generator().manual_seed(seed)
    ends = [_linear(width, _orthogonal(width, random)) for _ in range(2)]
    blocks = [ResidualBlock(width, random) for _ in range(n_blocks)]
    return nn.Sequential(ends[0], *blocks, ends[1])


def plain_34_without_norm(init: Init, seed: int, n_classes: int = 5) -> ResNet:
    """gradflow's Plain-34 with each BatchNorm replaced by the identity; see `initialise`."""
    model = plain_34_with_norm(init, seed, n_classes)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    return model


def plain_34_with_norm(init: Init, seed: int, n_classes: int = 5) -> ResNet:
    """gradflow's Plain-34 as it is."""
    with torch.random.fork_rng(devices=[]):  # its layers draw first weights of their own
        return plain_34(n_classes, init=init, seed=seed)


# -- layers ------------------------------------------------------------------------------------


def _linear(width: int, weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    # On "meta" the layer draws no first weights of its own from the global generator.
    layer = nn.Linear(width, width, bias=bias is not None, dtype=weight.dtype, device="meta")
    layer = layer.to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _batchnorm(width: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(width, dtype=PRECISE)


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=PRECISE)


def _gaussian(width: int, gain_square: float, random: torch.Generator) -> Tensor:
    """(n, n) with variance g² / n."""
    return _empty(width, width).normal_(0, (gain_square / width) ** 0.5, generator=random)


def _orthogonal(width: int, random: torch.Generator) -> Tensor:
    """(n, n), from the QR decomposition of a Gaussian matrix."""
    q: Tensor = torch.linalg.qr(_gaussian(width, 1.0, random)).Q
    return q


def _between(activation: Callable[[], nn.Module], blocks: Sequence[nn.Module]) -> nn.Sequential:
    """The blocks, unpacked, with an activation between each two."""
    modules: list[nn.Module] = []
    for block in blocks:
        if modules:
            modules.append(activation())
        modules += block if isinstance(block, nn.Sequential) else [block]
    return nn.Sequential(*modules)


# -- the cases of the gate ---------------------------------------------------------------------


# What the three gradient sizes are made of, and so all that a rate needs.
MEASURES = ("output_grad_norm", "grad_norm", "weight_norm")

# The inputs of a seed come from another stream than its weights: they must be independent.
INPUT_STREAM = 1_000_000


@dataclass(frozen=True)
class KnownNetwork:
    """A network, what goes in, and the label that the gradient of its outputs must get."""

    name: str
    build: Callable[[int], nn.Module]  # from a seed
    input_shape: tuple[int, ...]  # with the batch; of N(0, 1)
    label: Label
    dtype: torch.dtype = torch.float32  # as most networks are trained


# In float32, so that the sums are taken as in training: by the kernel compiled on this machine.
# Small where the truth is exact; elsewhere wide enough that no seed comes near the threshold: the
# total of 20 Gaussian layers of 64 units has a standard deviation of √(2·20/64) / ln 100 = 0.17
# decades.
CASES: tuple[KnownNetwork, ...] = (
    KnownNetwork("C1 linear, orthogonal, gain 0.5",
         partial(orthogonal_linear, 20, 16, 0.5), (4, 16), "vanishing"),
    KnownNetwork("C4 sigmoid, Xavier",
         partial(sigmoid_mlp, 12, 64, "xavier"), (4, 64), "vanishing"),
    KnownNetwork("C1 linear, orthogonal, gain 1",
         partial(orthogonal_linear, 20, 16, 1.0), (4, 16), "healthy"),
    KnownNetwork("C2 linear, Gaussian",
         partial(gaussian_linear, 20, 64), (4, 64), "healthy"),
    KnownNetwork("C7 residual, last γ = 0",
         partial(identity_residual, 6, 16), (16, 16), "healthy"),
    KnownNetwork("C1 linear, orthogonal, gain 1.5",
         partial(orthogonal_linear, 20, 16, 1.5), (4, 16), "exploding"),
    KnownNetwork("C5 BatchNorm and ReLU, batch 16",
         partial(batchnorm_mlp, 20, 64), (16, 64), "exploding"),
)  # fmt: skip


def record(case: KnownNetwork, seed: int) -> Trace:
    """One forward and backward pass of the network of `seed` under a Recorder.

    The loss is L = ⟨r, f(x)⟩ with r ~ N(0, 1): every output receives a gradient of one size and of
    no direction in particular, whatever the scale of f(x). A cross-entropy would saturate with it.
    """
    model = case.build(seed).to(case.dtype)
    random = torch.Generator().manual_seed(INPUT_STREAM + seed)
    inputs = _normal(case.input_shape, case.dtype, random)
    with Recorder(model, None, measures=MEASURES) as recorder:
        outputs = model(inputs)
        (_normal(outputs.shape, case.dtype, random) * outputs).sum().backward()
        with recorder.around_step():
            pass  # no update is made: the network is measured at its start
    return recorder.trace


def _normal(shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=dtype).normal_(generator=random)
