"""Real networks of one recipe are not told apart: the false positives of `compare`, measured."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gradflow import Recorder
from gradflow.analysis.case import Case
from gradflow.analysis.compare import compare
from gradflow.analysis.network import TrainedNetwork

DEPTH, WIDTH, N_STEPS = 6, 16, 10
N_NETWORKS, N_SEEDS, N_TRIALS = 60, 5, 40
MEASURES = ("output_grad_norm", "grad_norm", "weight_norm")


def train(seed: int) -> TrainedNetwork:
    """A few steps on random data; weights, data and labels are of this seed."""
    torch.manual_seed(seed)
    layers = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    images, labels = torch.randn(64, WIDTH), torch.arange(64) % 3
    with Recorder(model, optimizer, measures=MEASURES) as recorder:
        for step in range(N_STEPS):
            batch = slice(step * 16 % 64, step * 16 % 64 + 16)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            torch.autograd.backward(loss)
            optimizer.step()
    rates = np.repeat([1e-2, 1e-3], N_STEPS // 2)  # so that the early window is half of it
    return TrainedNetwork("mlp", seed, recorder.trace, learning_rates=rates)


@pytest.fixture(scope="module")
def pool() -> list[TrainedNetwork]:
    return [train(seed) for seed in range(N_NETWORKS)]


def trials(pool: list[TrainedNetwork]) -> Counter[tuple[str, str]]:
    """How often each comparison of two disjoint groups of seeds calls them different."""
    random = np.random.default_rng(0)
    n_wrong: Counter[tuple[str, str]] = Counter()
    for _ in range(N_TRIALS):
        drawn = [pool[i] for i in random.permutation(N_NETWORKS)[: 2 * N_SEEDS]]
        groups = [
            [replace(one, seed=seed) for seed, one in enumerate(half)]
            for half in (drawn[:N_SEEDS], drawn[N_SEEDS:])
        ]
        for found in compare(Case.of(*groups)):
            n_wrong[found.size, found.at] += found.differs
    return n_wrong


def test_networks_of_one_recipe_are_told_apart_in_at_most_five_percent(
    pool: list[TrainedNetwork],
) -> None:
    n_wrong = trials(pool)
    print(f"of {N_TRIALS} null pairs told apart: {dict(n_wrong)}")
    assert len(n_wrong) == 6
    assert all(n <= 0.05 * N_TRIALS for n in n_wrong.values())
