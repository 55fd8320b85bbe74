"""Cases: a network whose label is known, and how it is recorded, as a user would record it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gradflow.analysis.rates import Label
from gradflow.controls import networks
from gradflow.record import Recorder, Trace

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
         partial(networks.orthogonal_linear, 20, 16, 0.5), (4, 16), "vanishing"),
    KnownNetwork("C4 sigmoid, Xavier",
         partial(networks.sigmoid_mlp, 12, 64, "xavier"), (4, 64), "vanishing"),
    KnownNetwork("C1 linear, orthogonal, gain 1",
         partial(networks.orthogonal_linear, 20, 16, 1.0), (4, 16), "healthy"),
    KnownNetwork("C2 linear, Gaussian",
         partial(networks.gaussian_linear, 20, 64), (4, 64), "healthy"),
    KnownNetwork("C7 residual, last γ = 0",
         partial(networks.identity_residual, 6, 16), (16, 16), "healthy"),
    KnownNetwork("C1 linear, orthogonal, gain 1.5",
         partial(networks.orthogonal_linear, 20, 16, 1.5), (4, 16), "exploding"),
    KnownNetwork("C5 BatchNorm and ReLU, batch 16",
         partial(networks.batchnorm_mlp, 20, 64), (16, 64), "exploding"),
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
