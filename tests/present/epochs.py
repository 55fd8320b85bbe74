"""Epochs and traces whose numbers tell where they belong; what is told of them, and read back."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradflow.present.tracking.network_log import NetworkLog
from gradflow.present.tracking.rows import Budget
from gradflow.present.tracking.sink import STEP, Sink
from gradflow.record.histograms import HISTOGRAMS, LOWEST, N_BINS, ZERO, Histograms
from gradflow.record.trace import Trace
from gradflow.training.fit import Epoch

PARAMETERS = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "fc.weight")  # fmt: skip  # noqa: E501
OUTPUTS = tuple(name.removesuffix(".weight") for name in PARAMETERS)
KINDS = ("conv", "norm", "conv", "conv", "linear")


def epoch_of(
    index: int, step: int, step_losses: tuple[float, ...], val_accuracy: float = 0.5
) -> Epoch:
    return Epoch(
        index=index,
        step=step,
        lr=6e-4,
        train_loss=1.5,
        train_accuracy=0.25,
        val_loss=1.25,
        val_accuracy=val_accuracy,
        is_best=False,
        seconds=1.0,
        step_losses=step_losses,
    )


def trace_of(steps: Sequence[int] | range, with_outputs: bool = True) -> Trace:
    """Gradient norms that tell their step and site: step + site / 10 + 1."""
    outputs = OUTPUTS if with_outputs else ()
    sites = outputs + PARAMETERS
    kinds = KINDS[: len(outputs)] + tuple(f"{kind}.weight" for kind in KINDS)
    taken = np.asarray(steps, dtype=np.int64)
    told = taken[:, None] + np.arange(len(sites)) / 10 + 1
    is_output = np.arange(len(sites)) < len(outputs)
    values = {
        "grad_norm": np.where(is_output, np.nan, told),
        "output_grad_norm": np.where(is_output, told, np.nan),
        "weight_norm": np.where(is_output, np.nan, 1.0) * np.ones_like(told),
        "grad_nonfinite": np.where(is_output, np.nan, 0.0) * np.ones_like(told),
    }
    return Trace(taken, sites, kinds, np.ones(len(sites), np.int64), values)


def with_histograms(steps: Sequence[int] | range) -> Trace:
    """Of every weight and gradient: 3 zeros, 4 elements from 1 to 2 and n from 4 to 8, n its place;
    at the first step one element more."""
    trace = trace_of(steps)
    counts = np.zeros((len(trace), len(PARAMETERS), N_BINS), dtype=np.int64)
    counts[..., ZERO], counts[..., 1 - LOWEST] = 3, 4
    counts[..., 3 - LOWEST] = np.arange(1, len(PARAMETERS) + 1)
    counts[0, :, 1 - LOWEST] += len(trace) > 1
    found = Histograms(trace.steps, PARAMETERS, dict.fromkeys(HISTOGRAMS, counts))
    return replace(trace, histograms=found)


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Memory:
    """A sink that remembers what it was told, and when."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock
        self.rows: list[tuple[str, int, dict[str, float]]] = []
        self.pictures: list[tuple[str, int, np.ndarray]] = []
        self.histograms: list[tuple[str, int, np.ndarray, np.ndarray]] = []
        self.tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = {}
        self.values: list[tuple[float, int]] = []  # (time, how many)
        self.ends: list[tuple[dict[str, Any], bool]] = []

    def log(self, values: Mapping[str, float], at: int, axis: str = STEP) -> None:
        self.rows.append((axis, at, dict(values)))
        self.values.append((self.clock(), len(values) + 1))

    def histogram(self, key: str, counts: np.ndarray, edges: np.ndarray, at: int) -> None:
        self.histograms.append((key, at, counts, edges))
        self.values.append((self.clock(), 2 * len(counts)))

    def picture(self, key: str, pixels: np.ndarray, at: int) -> None:
        self.pictures.append((key, at, pixels))
        self.values.append((self.clock(), 2))

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.tables[key] = (columns, rows)

    def finish(self, summary: Mapping[str, Any], *, failed: bool = False) -> None:
        self.ends.append((dict(summary), failed))

    def most_in_a_minute(self) -> int:
        """The largest number of values within any 60 seconds."""
        return max(
            sum(n for at, n in self.values if start <= at <= start + 60)
            for start in {at for at, _ in self.values}
        )


class Training:
    """Two recorded steps an epoch, after `n_before` epochs of an earlier process; told to sinks."""

    def __init__(
        self,
        *sinks: Sink,
        clock: Clock | None = None,
        n_before: int = 0,
        recorded: Callable[[range], Trace] = trace_of,
    ) -> None:
        self.clock, self.n_epochs = clock or Clock(), n_before
        self.log = NetworkLog(
            "plain_18-s0",
            sinks,
            Budget(self.clock),
            records=lambda first, measures: recorded(range(first, 2 * self.n_epochs)),
            clock=self.clock,
        )

    def epoch(self, losses: tuple[float, float] = (1.0, 0.5), val_accuracy: float = 0.5) -> None:
        self.clock.now += 1.0
        self.n_epochs += 1
        epoch = epoch_of(self.n_epochs - 1, 2 * self.n_epochs, losses, val_accuracy)
        self.log.log_epoch(epoch)

    def run(self, n_epochs: int) -> None:
        while self.n_epochs < n_epochs:
            self.epoch()


class Terminal(io.StringIO):
    """A person who must not be asked."""

    def isatty(self) -> bool:
        return True

    def readline(self, *args: Any) -> str:
        pytest.fail("wandb asked for a key")


# -- what wandb's own reader says of an offline run ------------------------------------------------


def read_wandb(file: Path) -> list[dict[str, Any]]:
    reader = Path(sys.executable).with_name("wandb")
    command = [reader, "leet", "inspect", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def run_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    (about,) = [record["run"] for record in records if record["type"] == "run"]
    return about


def history_of(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The logged rows, without wandb's own keys."""
    return [_own(record["history"]["item"]) for record in records if record["type"] == "history"]


def summary_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    updates = [one["summary"].get("update", {}) for one in records if one["type"] == "summary"]
    return {key: value for update in updates for key, value in _own(update).items()}


def _own(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("_")}
