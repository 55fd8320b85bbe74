"""Cases: a network whose label is known, and how it is recorded, as a user would record it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradflow.analysis.rates import Label, trace_rate
from gradflow.record import Recorder, Trace

# What the three gradient sizes are made of, and so all that a rate needs.
MEASURES = ("output_grad_norm", "grad_norm", "weight_norm")

# The inputs of a seed come from another stream than its weights: they must be independent.
INPUT_STREAM = 1_000_000


@dataclass(frozen=True)
class Case:
    """A network, what goes in, and the label that the gradient of its outputs must get."""

    name: str
    build: Callable[[int], nn.Module]  # from a seed
    input_shape: tuple[int, ...]  # with the batch; of N(0, 1)
    label: Label
    dtype: torch.dtype = torch.float32  # as most networks are trained


def record(case: Case, seed: int) -> Trace:
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


def label_of(case: Case, seed: int) -> Label:
    """What the instrument calls the gradient of the outputs."""
    return trace_rate(record(case, seed), "output_gradient").label


def _normal(shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=dtype).normal_(generator=random)
