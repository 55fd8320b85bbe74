"""experiments/overhead.py: its tutorial code measures what gradflow does."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from gradflow import Recorder

SCRIPT = Path(__file__).parents[1] / "experiments" / "overhead.py"


@pytest.fixture(scope="module")
def overhead() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("overhead", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["overhead"] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["overhead"]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 10),
    )


def setup_of(overhead: ModuleType) -> Any:
    return overhead.Setup("small", network, image_size=8, batch_size=5)


def test_the_tutorial_code_measures_what_gradflow_does(overhead: ModuleType) -> None:
    log: list[dict[str, float]] = []
    training = setup_of(overhead).training()
    with (
        Recorder(training.model, training.optimizer) as recorder,
        overhead.with_tutorial_code(training, log) as loop,
    ):
        for _ in range(2):
            loop.step()
    assert len(log) == 2
    for measure, key in {
        "grad_norm": "grad_norm",
        "output_grad_norm": "grad_norm",
        "output_mean": "mean",
        "output_rms": "rms",
        "output_zero_fraction": "zero_share",
    }.items():
        table = recorder.trace.select(measure)
        assert len(table.sites) >= 4, measure
        for row, values in zip(log, table.values, strict=True):
            expected = [row[f"{site}.{key}"] for site in table.sites]
            assert values == pytest.approx(expected, rel=1e-4, abs=1e-7), measure
