"""The figures of a finished run, from its records, and of a verdict."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from gradflow.analysis import DepthProfile, depth_profile, geometric_mean, weight_table
from gradflow.analysis.case import Case
from gradflow.analysis.numerals import times
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.statistics import mean_and_range
from gradflow.analysis.vanishing import JUDGED_SIZES, early_decades
from gradflow.analysis.verdict import Verdict
from gradflow.present import plots
from gradflow.record.measures import DERIVED, MEASURES
from gradflow.record.trace import Table, Trace
from gradflow.training.config import TrainConfig
from gradflow.training.rundir import NetworkDir, RunDir


def save_figures(run: RunDir) -> dict[str, DepthProfile]:
    """Draw loss curves, depth profiles and heat maps into the run; returns the profiles.

    Curves and profiles have one line per architecture, with the range of its seeds. All heat maps
    of a run have one colour scale. Without records there are loss curves only.
    """
    networks = run.networks()
    _save_losses(run, networks)
    traces = {one: one.trace() for one in networks if one.has_trace()}
    if not traces:
        return {}
    profiles = {one: depth_profile(trace) for one, trace in traces.items()}
    _save_profiles(run, profiles)
    short = of_run(run)
    tables = {one.name: without_short(weight_table(trace), short) for one, trace in traces.items()}
    limits = plots.positive_range(table.values for table in tables.values())
    for name, table in tables.items():
        ax = plots.layer_step_heatmap(
            table.values, table.steps, table.sites, plots.GRAD_NORM, limits=limits
        )
        left_out = f"\n(without the last batch of each epoch, {short[1]} images)" if short else ""
        ax.set_title(f"{name}: every layer at every recorded step{left_out}")
        plots.save(ax, run.figures / f"heatmap-{name}.png")
    return {one.name: profile for one, profile in profiles.items()}


def _save_profiles(run: RunDir, profiles: Mapping[NetworkDir, DepthProfile]) -> None:
    bands = {}
    for arch in dict.fromkeys(one.arch for one in profiles):
        of_seeds = [profile for one, profile in profiles.items() if one.arch == arch]
        with np.errstate(divide="ignore"):
            logs = np.log10(np.array([profile.values for profile in of_seeds]))
        mean, low, high = mean_and_range(logs)
        bands[arch] = (of_seeds[0].sites, 10.0**mean, 10.0**low, 10.0**high)
    title = "Gradient norm from input to output, geometric mean over training"
    ax = plots.profile_bands_plot(bands, plots.GRAD_NORM, title)
    plots.save(ax, run.figures / "depth_profile.png")


def plot_trace(trace: Trace, measure: str, ax: plots.Axes | None = None) -> plots.Axes:
    """A measure by depth at the first and the last recorded step, and its mean over all of them."""
    table = trace.select(measure)
    on_path = weight_table(trace, measure)
    table = on_path if on_path.sites else table
    if not table.values.size:
        raise ValueError(f"Expected records of {measure}, but this trace has none.")
    lines = {
        f"step {table.steps[0]}": table.values[0],
        f"step {table.steps[-1]}": table.values[-1],
        "geometric mean over steps": geometric_mean(table.values),
    }
    meaning = MEASURES.get(measure) or DERIVED[measure]
    return plots.profile_bands_plot(
        {one: (table.sites, values, values, values) for one, values in lines.items()},
        f"{measure} ({meaning.unit})",
        "Depth profile, from input to output",
        ax,
        log=not measure.endswith("fraction"),
    )


def verdict_figure(verdict: Verdict) -> plots.Figure:
    """`draw_profiles` below its finding."""
    return plots.add_title(draw_profiles(verdict), gradient_title(verdict.case))


def draw_profiles(verdict: Verdict, mark: str = "") -> plots.Figure:
    """δ and ŝ of both networks by depth, early in training; `mark` is a layer to point at in δ."""
    sizes = [size for size in JUDGED_SIZES if any(band.size == size for band in verdict.bands)]
    axes = plots.stacked(len(sizes), 7.0, 3.8)
    for ax, size in zip(axes, sizes, strict=True):
        profiles = {b.network: b.values() for b in verdict.bands if b.size == size}
        bands = {name: (p.layers, p.mean, p.low, p.high) for name, p in profiles.items()}
        marked = (mark, f"differ most: {mark}") if mark and size == "output_gradient" else None
        meaning = GRADIENT_SIZES[size]
        label = f"{meaning.symbol} ({meaning.unit})"
        plots.profile_bands_plot(bands, label, meaning.formula, ax, mark=marked)
    return plots.figure_of(axes)


def gradient_title(case: Case) -> str:
    """By how much δ changes from the output to the input, in each network."""
    changes = {case.name: early_decades(case, "output_gradient").mean}
    if case.reference:
        changes[case.reference_name] = early_decades(Case(case.reference), "output_gradient").mean
    known = [
        f"{times(change)} times {'larger' if change > 0 else 'smaller'} in {name}"
        for name, change in changes.items()
        if np.isfinite(change)
    ]
    if not known:
        return f"Gradient by depth of {' and '.join(changes)}"
    return f"At the first layer the gradient is {' and '.join(known)} than at the last"


History = list[dict[str, Any]]  # of one training, by epoch
LOSS = "loss (nats, with label smoothing)"


def curves(histories: Sequence[History], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation, (seeds, epochs) each, NaN where a seed had ended."""
    values = np.full((2, len(histories), max(map(len, histories))), np.nan)
    for i, history in enumerate(histories):
        for j, part in enumerate(("train", "val")):
            values[j, i, : len(history)] = [epoch[f"{part}_{what}"] for epoch in history]
    return values[0], values[1]


def learning_rates(histories: Iterable[History]) -> list[float]:
    """By epoch, of the longest training."""
    return [epoch["lr"] for epoch in max(histories, key=len)]


def _save_losses(run: RunDir, networks: Sequence[NetworkDir]) -> None:
    """One line per architecture, with the range of its seeds."""
    by_arch: dict[str, list[History]] = {}
    for one in networks:
        by_arch.setdefault(one.arch, []).append(one.history())
    losses = {arch: curves(histories, "loss") for arch, histories in by_arch.items()}
    rates = learning_rates(chain(*by_arch.values()))
    plots.save(plots.curves_plot(losses, rates, LOSS, "Loss by epoch"), run.figures / "loss.png")


# -- short batches ---------------------------------------------------------------------------------


SHORT = 0.5  # of a full batch: below it the noise of a gradient is larger by more than √2


def short_last_batch(config: TrainConfig, n_train: int) -> tuple[int, int] | None:
    """(batches per epoch, images in the last), where the last holds less than half of the others.

    >>> short_last_batch(TrainConfig(batch_size=64), 64 * 3 + 7)
    (4, 7)
    """
    n_full, n_last = divmod(n_train, config.batch_size)
    is_short = n_full and 2 <= n_last < SHORT * config.batch_size  # one image alone is left out
    return (n_full + 1, n_last) if is_short and config.batches_per_step == 1 else None


def of_run(run: RunDir) -> tuple[int, int] | None:
    """The same for the trainings of a run."""
    return short_last_batch(run.config(), run.data()["split"]["counts"]["train"])


def without_short(table: Table, short: tuple[int, int] | None) -> Table:
    """The table without the steps of short batches; optimizer steps are counted from 0."""
    if short is None:
        return table
    keep = np.asarray(table.steps) % short[0] != short[0] - 1
    return Table(table.steps[keep], table.sites, table.values[keep])
