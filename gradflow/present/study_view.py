"""A study before and while it trains: its plan and its progress, as text for rich."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from gradflow.analysis import thresholds as at
from gradflow.analysis.sentences import SEEDS
from gradflow.analysis.statistics import enough_seeds
from gradflow.present.study_story import duration
from gradflow.present.terminal_table import table
from gradflow.studies import Cell
from gradflow.studies.arms import Place
from gradflow.studies.folder import ENDED, CellDir
from gradflow.studies.plan import Plan, PlannedCell
from gradflow.studies.study import TRIAL_SEED

# -- before ------------------------------------------------------------------------------------


def plan_view(plan: Plan) -> RenderableType:
    """The cells, how long they take, and how many seeds the wished precision needs."""
    study = plan.study
    columns = ("arm", "network", "seeds", "steps each", "time each", "changes")
    rows = []
    by_label: dict[tuple[str, Place], list[PlannedCell]] = {}
    for one in plan.cells:
        by_label.setdefault((one.cell.label, one.cell.place), []).append(one)
    for (label, place), cells in by_label.items():
        arm = study.arm(cells[0].cell.arm)
        changes = [f"{key} = {value}" for key, value in arm.set.items()]
        changes += [f"{key} tuned" for key in arm.tune if not cells[0].cell.trial]
        changes += [arm.intervene] if arm.intervene else []
        seeds = "its own" if cells[0].cell.trial else _seeds([one.cell.seed for one in cells])
        time = duration(cells[0].seconds)
        steps, said = str(cells[0].n_steps), "; ".join(changes) or "-"
        rows.append((label, study.network(place).arch, seeds, steps, time, said))
    done = f", {plan.n_done} are done" if plan.n_done else ""
    total = duration(plan.seconds_one_by_one)
    lines = [
        f"{len(plan.cells)} trainings to do{done}: about {duration(plan.seconds)} with "
        f"{plan.workers} at a time, {total} one by one (from measured steps, one training alone)",
        _seeds_sentence(plan),
    ]
    few = [] if enough_seeds(len(study.seeds)) else [Text(_few_seeds(plan), style="yellow")]
    found = table(columns, rows, right=("steps each", "time each"), framed=False)
    return Group(Text(study.question, style="bold"), Text(), found, Text(), *map(Text, lines), *few)


def _seeds_sentence(plan: Plan) -> str:
    study = plan.study
    source = (
        "as the finished ones vary" if plan.spread_is_measured
        else f"if runs of one recipe differ by {at.LOSS_MARGIN.value:g} nats and the gap is "
        f"{study.expected_gap:g} nats"
    )  # fmt: skip
    needed = "more than 1000" if plan.seeds_needed is None else str(plan.seeds_needed)
    return (
        f"shares of the gap to ±{study.precision:g} need {needed} seeds, {source} (this study has "
        f"{len(study.seeds)})"
    )


def _few_seeds(plan: Plan) -> str:
    n = len(plan.study.seeds)
    return (
        f"Warning: {SEEDS} seeds to claim, and there {'are' if n > 1 else 'is'} {n}: this study "
        f"will describe, and decide nothing. Write `seeds: {SEEDS}`."
    )


def _seeds(seeds: Sequence[int]) -> str:
    ordered = sorted(seeds)
    is_range = len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]} to {ordered[-1]}" if is_range else ", ".join(map(str, ordered))


# -- meanwhile ---------------------------------------------------------------------------------


def progress_view(cells: Sequence[Cell]) -> RenderableType:
    """One row per arm and network, one column per seed: how far each training is."""
    states = {cell.name: CellDir(cell.folder).state() for cell in cells}
    seeds = sorted({cell.seed for cell in cells})
    columns = ("trial" if seed == TRIAL_SEED else f"seed {seed}" for seed in seeds)
    by_label: dict[tuple[str, str], dict[int, Text]] = {}
    for cell in cells:
        row = by_label.setdefault((cell.label, f"{cell.place} ({cell.config.arch})"), {})
        row[cell.seed] = _state(states[cell.name], cell.config.epochs)
    rows = [(*label, *(row.get(seed, "") for seed in seeds)) for label, row in by_label.items()]
    n_done = sum(state.get("state") in ENDED for state in states.values())
    found = table(("arm", "network", *columns), rows, framed=False)
    return Group(found, Text(f"{n_done} of {len(cells)} trainings are done"))


def _state(state: Mapping[str, Any], n_epochs: int) -> Text:
    name = state.get("state", "waiting")
    if name == "running":
        return Text(f"epoch {state.get('epoch', 0)}/{n_epochs}", style="yellow")
    styles = {"done": "green", "failed": "red", "diverged": "red"}
    return Text(str(name), style=styles.get(name, "dim"))


def end_line(cell: Cell) -> str | None:
    """What to say of a training that has ended; None before."""
    state = CellDir(cell.folder).state()
    if state.get("state") == "done":
        return f"{cell.name} is done ({duration(state.get('seconds', math.nan))})"
    if state.get("state") in ("failed", "diverged"):
        return f"{cell.name} {state['state']}: {state.get('message', '')}"
    return None
