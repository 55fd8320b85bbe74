"""Reading gradients in a residual network, against the sum over its paths.

Veit et al. 2016, https://arxiv.org/abs/1605.06431: n residual blocks are 2ⁿ paths, each of which
takes some of the branches and passes by the others.
"""

from itertools import product
from math import comb

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradflow import Recorder

N_BLOCKS, WIDTH = 8, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def residual_net() -> nn.Sequential:
    torch.manual_seed(0)
    stem = nn.Linear(WIDTH, WIDTH, bias=False)
    return nn.Sequential(stem, *(Block() for _ in range(N_BLOCKS))).double()


def record(model: nn.Sequential, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
    """∂⟨weights, y⟩/∂(output of the stem), and every output's gradient norm, as recorded."""
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.eye(WIDTH, dtype=torch.float64)[:1]
    with Recorder(model, optimizer, measures=["output_grad_norm"]) as recorder:
        torch.autograd.backward((model(x) @ weights).sum())
        optimizer.step()
    table = recorder.trace.select("output_grad_norm")
    outer = model.get_parameter("0.weight").grad  # of the output's gradient with x = (1, 0, …)
    assert outer is not None
    return outer[:, 0], dict(zip(table.sites, table.values[0].tolist(), strict=True))


def path_gradients(model: nn.Sequential, weights: Tensor, first: int) -> dict[str, Tensor]:
    """By path through the blocks from `first` on, "1" where it takes the branch: Π Wᵀ weights."""
    branches = [
        model.get_parameter(f"{1 + block}.branch.weight").detach()
        for block in range(first, N_BLOCKS)
    ]
    gradients = {}
    for path in product("01", repeat=len(branches)):
        gradient = weights
        for branch, taken in zip(reversed(branches), reversed(path), strict=True):
            if taken == "1":
                gradient = branch.T @ gradient
        gradients["".join(path)] = gradient
    return gradients


def test_the_gradient_is_the_sum_of_all_paths() -> None:
    model = residual_net()
    weights = torch.randn(WIDTH, dtype=torch.float64)
    at_stem, recorded = record(model, weights)
    paths = path_gradients(model, weights, first=0)
    assert len(paths) == 2**N_BLOCKS
    torch.testing.assert_close(
        torch.stack([*paths.values()]).sum(0), at_stem, rtol=1e-10, atol=1e-12
    )
    for block in range(N_BLOCKS):
        # What reaches the output of a branch are the paths through the blocks behind it.
        behind = torch.stack([*path_gradients(model, weights, first=block + 1).values()]).sum(0)
        assert recorded[f"{block + 1}.branch"] == pytest.approx(behind.norm().item(), rel=1e-10)
    assert recorded["0"] == pytest.approx(at_stem.norm().item(), rel=1e-10)


def test_path_lengths_are_binomial() -> None:
    """Branches that multiply by a give Σ_k (paths of length k) a^k: nine readings, nine counts."""
    model = residual_net()
    unit = torch.eye(WIDTH, dtype=torch.float64)[0]
    strengths, norms = np.linspace(0, 2, N_BLOCKS + 1), []
    for strength in strengths:
        for block in range(1, N_BLOCKS + 1):
            branch = model.get_parameter(f"{block}.branch.weight")
            branch.data = strength * torch.eye(WIDTH, dtype=torch.float64)
        norms.append(record(model, unit)[1]["0"])
    counts = np.linalg.solve(np.vander(strengths, increasing=True), norms)
    binomial = [comb(N_BLOCKS, k) for k in range(N_BLOCKS + 1)]
    np.testing.assert_allclose(counts, binomial, rtol=1e-6)
    np.testing.assert_allclose(counts / counts.sum(), np.array(binomial) / 2**N_BLOCKS, rtol=1e-6)
