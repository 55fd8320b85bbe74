"""The plan of a study before it runs: its cells, how long they take, how many seeds it needs."""

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from gradflow.analysis.shares import seeds_for_width
from gradflow.analysis.thresholds import LOSS_MARGIN
from gradflow.record.schedule import N_FULL_AT_FIRST
from gradflow.studies.arms import Cell
from gradflow.studies.cell import load_once
from gradflow.studies.folder import CellDir, StudyDir
from gradflow.studies.judging import analyse
from gradflow.studies.outcomes import MEASURES
from gradflow.studies.run import check_arms, open_trials
from gradflow.studies.study import Study
from gradflow.training.config import TrainConfig
from gradflow.training.evaluate import predict
from gradflow.training.fit import make_accelerator, start_training, train_steps
from gradflow.training.train import recorder_of
from gradflow.training.weights import build_network

N_TIMED = 4  # steps, of which the first is not counted: it also sets up what later ones reuse


@dataclass(frozen=True)
class PlannedCell:
    """One training that is still to do."""

    cell: Cell
    n_steps: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a study will cost, and what it can then tell apart."""

    study: Study
    cells: tuple[PlannedCell, ...]
    n_done: int
    workers: int
    spread: float  # of a share over seeds
    spread_is_measured: bool
    seeds_needed: int | None  # for the wished precision; None beyond 1000

    @property
    def seconds(self) -> float:
        """Of all cells, were each worker always busy; the longest cell alone if that is more."""
        longest = max((one.seconds for one in self.cells), default=0.0)
        return max(self.seconds_one_by_one / self.workers, longest)

    @property
    def seconds_one_by_one(self) -> float:
        return sum(one.seconds for one in self.cells)

    def to_json(self) -> dict[str, Any]:
        return {
            "study": self.study.name,
            "cells": [
                {"cell": one.cell.name, "steps": one.n_steps, "seconds": one.seconds}
                for one in self.cells
            ],
            "seconds": self.seconds,
            "precision": self.study.precision,
            **{name: getattr(self, name) for name in
               ("n_done", "workers", "spread", "spread_is_measured", "seeds_needed")},
        }  # fmt: skip


def plan_study(study: Study, folder: StudyDir, workers: int) -> Plan:
    """Measure a step and a look at the validation set of every kind of cell, and count.

    Trains a few steps of fresh networks and writes nothing. The kinds are told apart by what a step
    costs: network, size of image and batch. Raises as a training would: a missing folder, layers
    that a network lacks.
    """
    study = _with_combination(dataclasses.replace(study, tuned=folder.tuning()), folder)
    cells = [*open_trials(study, folder), *study.cells(folder.cells)]
    repeated = {one.name for one in study.ready(folder.cells) if one.same_as is not None}
    open_cells = [cell for cell in cells if not CellDir(cell.folder).is_done]
    left = [cell for cell in open_cells if cell.name not in repeated]
    check_arms(left)
    costs: dict[tuple[Any, ...], tuple[int, float, float]] = {}
    planned = []
    for cell in left:
        kind = _kind(cell.config)
        if kind not in costs:
            costs[kind] = _measure(cell)
        (n_steps, seconds, at_end), epochs = costs[kind], cell.config.epochs
        planned.append(PlannedCell(cell, epochs * n_steps, epochs * seconds + at_end))
    spread, is_measured = _spread(study, folder)
    return Plan(
        study, tuple(planned), len(cells) - len(open_cells), workers, spread, is_measured,
        seeds_for_width(spread, study.precision),
    )  # fmt: skip


def _with_combination(study: Study, folder: StudyDir) -> Study:
    """With the arm that combines the two strongest, or two that might be."""
    if study.combine != "strongest":
        return study
    pair = folder.combination(study)
    if pair is None:
        causes = [arm.name for arm in study.arms if arm.role == "cause"]
        pair = next(study.combinable(causes), None)
        if pair is None:
            return study
        unknown = dataclasses.replace(study.combined(*pair), name="the two strongest together")
        return study.with_arm(unknown)
    return study.with_arm(study.combined(*pair))


def _kind(config: TrainConfig) -> tuple[Any, ...]:
    return (config.arch, config.image_size, config.batch_size, config.width, config.data,
            config.precision, config.batches_per_step, config.log_grads, config.every,
            config.cadence, config.histograms, config.optimizer)  # fmt: skip


def _measure(cell: Cell) -> tuple[int, float, float]:
    """(steps of an epoch, its seconds with the look at the validation set, seconds at the end)."""
    torch.set_num_threads(cell.threads)
    accelerator = make_accelerator(cell.config)
    config, data = load_once(cell.config)
    model = build_network(config.arch, len(data.class_names), config, seed=cell.seed)
    state = start_training(model, config, accelerator)
    recorder = recorder_of(state, N_FULL_AT_FIRST) if config.log_grads else None
    training = data.training(config, cell.seed)
    n_batches = training.n_batches(accelerator.num_processes)
    per_step = config.batches_per_step or n_batches
    n_images = (1 + N_TIMED) * per_step * config.batch_size
    some = dataclasses.replace(training, indices=training.indices[:n_images])
    times: list[float] = []
    try:
        while len(times) <= N_TIMED:
            train_steps(state, some, lambda: times.append(time.perf_counter()))
    finally:
        if recorder is not None:
            recorder.close()
    step = (times[-1] - times[0]) / (len(times) - 1)
    start = time.perf_counter()
    predict(state.model, data.in_order("validation"), accelerator)
    n_train, n_validation = len(data.split.train), len(data.split.validation)
    look = (time.perf_counter() - start) / n_validation
    accelerator.free_memory()
    # Every part with the weights of the last and of the best epoch, and two passes over the
    # training set to recalibrate BatchNorm and to see the loss with it.
    looked_at = 2 * (n_train + n_validation + len(data.split.test)) + 2 * n_train
    n_steps = math.ceil(n_batches / per_step)
    return n_steps, n_steps * step + n_validation * look, looked_at * look


def _spread(study: Study, folder: StudyDir) -> tuple[float, bool]:
    """The standard deviation of a share over seeds: of the cells that are done, or expected.

    A share is made of four losses, each of which varies by the spread between runs of one recipe.
    """
    if StudyDir.holds(folder.path):
        found = [one.shares[MEASURES[0].name].interval for one in analyse(folder).causes]
        spreads = [one.sd for one in found if one.n > 1 and math.isfinite(one.sd)]
        if spreads:
            return max(spreads), True
    return 2 * LOSS_MARGIN.value / study.expected_gap, False
