"""What the bridges are compared with: the same training, written out by hand."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from gradflow import Trace

Batch = tuple[Tensor, Tensor]


class Expected:
    """Gradient norm and length of the update of every parameter, step by step."""

    def __init__(self) -> None:
        self.grad_norms: dict[str, list[float]] = {}
        self.update_norms: dict[str, list[float]] = {}

    def assert_recorded_in(self, trace: Trace, names: Callable[[str], str] = str) -> None:
        for measure, steps in (("grad_norm", self.grad_norms), ("update_norm", self.update_norms)):
            for name, values in steps.items():
                got = trace.values[measure][:, trace.sites.index(names(name))]
                np.testing.assert_allclose(got, values, rtol=1e-5, err_msg=f"{measure} {name}")


@pytest.fixture(autouse=True)
def process_as_new() -> Iterator[None]:
    """Accelerate keeps the device that its first user chose, Lightning its group of processes."""
    environment = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


@pytest.fixture
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 5, generator=generator), torch.randn(4, 2, generator=generator))
        for _ in range(6)
    ]


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))


@dataclass(frozen=True)
class Loop:
    """A bare loop: how many batches make a step, and to which norm gradients are clipped."""

    accumulate: int
    clip: float | None

    def train(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Batch]
    ) -> Expected:
        """Train `model` in place, and return what a Recorder should have seen."""
        expected = Expected()
        for first in range(0, len(batches), self.accumulate):
            optimizer.zero_grad()
            for inputs, targets in batches[first : first + self.accumulate]:
                (nn.functional.mse_loss(model(inputs), targets) / self.accumulate).backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.step()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                change = (parameter.detach() - before[name]).double()
                expected.grad_norms.setdefault(name, []).append(float(parameter.grad.norm()))
                expected.update_norms.setdefault(name, []).append(float(change.norm()))
        return expected


LOOPS = {"plain": (1, None), "accumulation": (2, None), "clipping": (1, 0.05), "both": (3, 0.05)}


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    return Loop(*LOOPS[request.param])


@pytest.fixture
def n_hooks() -> Callable[[nn.Module, torch.optim.Optimizer], int]:
    """How many hooks a model and an optimizer carry."""

    def count(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        hooks = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
        for module in model.modules():
            hooks += [module._forward_hooks, module._forward_pre_hooks]
        return sum(map(len, hooks))

    return count
