"""The figures of a finished run, from its records, and of a verdict."""

from pathlib import Path

import numpy as np

from gradflow.analysis import DepthProfile, depth_profile, weight_table
from gradflow.analysis.numerals import plain
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.vanishing import JUDGED_SIZES, early_decades
from gradflow.analysis.verdict import Verdict
from gradflow.present import plots
from gradflow.training.rundir import RunDir


def save_figures(run: RunDir) -> dict[str, DepthProfile]:
    """Draw loss curves, depth profiles and heat maps into the run; returns the profiles.

    All heat maps of a run have one colour scale. Without records there are loss curves only.
    """
    _save_losses(run)
    traces = {n.name: n.trace() for n in run.networks() if n.has_trace()}
    if not traces:
        return {}
    profiles = {name: depth_profile(trace) for name, trace in traces.items()}
    lines = {name: (profile.sites, profile.values) for name, profile in profiles.items()}
    ax = plots.depth_profile_plot(lines, plots.GRAD_NORM)
    ax.set_title("Gradient norm from input to output, geometric mean over training")
    plots.save(plots.figure_of(ax), run.figures / "depth_profile.png")
    tables = {name: weight_table(trace) for name, trace in traces.items()}
    values = np.concatenate([table.values.ravel() for table in tables.values()])
    usable = values[np.isfinite(values) & (values > 0)]
    limits = (float(usable.min()), float(usable.max())) if len(usable) else None
    for name, table in tables.items():
        ax = plots.layer_step_heatmap(
            table.values, table.steps, table.sites, plots.GRAD_NORM, limits=limits
        )
        ax.set_title(f"{name}: every layer at every recorded step")
        plots.save(plots.figure_of(ax), run.figures / f"heatmap-{name}.png")
    return profiles


def save_verdict_figure(verdict: Verdict, path: Path) -> Path:
    """Write `verdict_figure` to `path`."""
    return plots.save(verdict_figure(verdict), path)


def verdict_figure(verdict: Verdict) -> plots.Figure:
    """The depth profiles of δ and ŝ of both networks, early in training, side by side."""
    sizes = [size for size in JUDGED_SIZES if any(band.size == size for band in verdict.bands)]
    fig = plots.new_figure(7.0 * len(sizes), 3.8)
    for ax, size in zip(fig.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        bands = {
            band.network: (band.layers, band.mean, band.low, band.high)
            for band in verdict.bands
            if band.size == size
        }
        meaning = GRADIENT_SIZES[size]
        plots.profile_bands_plot(
            bands,
            f"{meaning.symbol} = {meaning.formula.split(' of ')[0]} ({meaning.unit})",
            _title(verdict, size),
            ax,
        )
    return fig


def _title(verdict: Verdict, size: str) -> str:
    """The finding: by how much it changes in the accused network."""
    change = early_decades(verdict.case, size).mean
    grows = "grows" if change > 0 else "shrinks"
    name = "output gradient" if size == "output_gradient" else "scale-invariant gradient"
    times = f"{plain(10 ** abs(change))}×"
    return f"Towards the input the {name} of {verdict.case.name} {grows} {times}"


def _save_losses(run: RunDir) -> None:
    histories = {network.name: network.history() for network in run.networks()}
    curves = {
        name: (
            [epoch["index"] + 1 for epoch in history],
            [epoch["train_loss"] for epoch in history],
            [epoch["val_loss"] for epoch in history],
        )
        for name, history in histories.items()
    }
    ax = plots.history_plot(curves, "loss (nats, with label smoothing)")
    plots.save(plots.figure_of(ax), run.figures / "loss.png")
