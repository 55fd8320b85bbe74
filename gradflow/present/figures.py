"""The figures of a finished run, from its records."""

import numpy as np

from gradflow.analysis import DepthProfile, depth_profile, weight_table
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
