"""A saved W&B workspace: one page of panels in place of one panel for each of 200 keys."""

import warnings
from typing import Any

import wandb.errors

from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.sentences import SIZE_WORDS
from gradflow.present.tracking import verdict_log
from gradflow.present.tracking.sink import LAYER, STEP
from gradflow.present.tracking.wandb_sink import unattended

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it warns of itself
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

# The stages of gradflow's networks, as in the keys of rows.
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
# Of each norm: what one sees, and its formula.
NORMS = {
    "weight": ("gradient of the weights", "‖∂L/∂w‖ (loss / weight)"),
    "output": ("gradient passed on", "‖∂L/∂z‖ (loss / activation)"),
}
SEEN = {**SIZE_WORDS, "gradient_rms": "the gradient of a weight, which proves nothing by itself"}
MAX_RUNS = 100  # W&B draws 10 otherwise: five seeds of two networks, and no more


def workspace(entity: str, project: str, name: str = "gradflow") -> ws.Workspace:
    """The page, which nothing was sent of: verdict, profiles, heat maps, norms by stage, training.

    Runs are grouped by architecture; a line is the mean of the seeds, its band their range. The
    range, since on a logarithmic axis mean less deviation may fall below zero.
    """
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            _section("Verdict", _verdict_panels()),
            _section("Gradient by depth", [*map(_profile, GRADIENT_SIZES), *_pictures()]),
            _section("Gradient norms by stage", _stage_panels()),
            _section("Training", _training_panels()),
        ],
        settings=ws.WorkspaceSettings(
            x_axis=STEP, group_by_prefix="first", max_runs=MAX_RUNS, smoothing_type="none"
        ),
    )


def to_json(page: ws.Workspace) -> dict[str, Any]:
    """What W&B stores of the page, in plain JSON types."""
    # There is no public way to see a workspace that was not saved.
    model = page._to_model()
    return dict(model.model_dump(mode="json", by_alias=True, exclude_none=True))


def save(page: ws.Workspace) -> str:
    """Send the page to W&B and return its address. Raises RuntimeError without a login."""
    try:
        with unattended():
            page.save()
            return str(page.url)
    except (wandb.errors.Error, OSError) as error:
        raise RuntimeError(
            f"Expected W&B to save the workspace in {page.entity}/{page.project}, but got: "
            f"{error} Log in with `wandb login`, or look at it with --json."
        ) from error


def _section(name: str, panels: list[Any]) -> ws.Section:
    return ws.Section(name=name, panels=panels, is_open=True)


def _line(title: str, key: str, title_y: str, *, x: str = STEP, log: bool = True) -> wr.LinePlot:
    return wr.LinePlot(
        title=title,
        x=x,
        y=[key],
        log_y=log,
        title_x="layer, input at the left" if x == LAYER else "optimizer step",
        title_y=title_y,
        groupby=wr.Config("arch"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=MAX_RUNS,
    )


def _verdict_panels() -> list[Any]:
    return [
        wr.WeavePanelSummaryTable(table_name=verdict_log.ANSWER),
        wr.WeavePanelSummaryTable(table_name=verdict_log.FINDINGS),
        wr.MediaBrowser(
            title="Where the gradient changes by depth, with what the verdict holds it to",
            media_keys=[verdict_log.PROFILES],
        ),
    ]


def _profile(size: str) -> wr.LinePlot:
    meaning = GRADIENT_SIZES[size]
    title = f"By depth: {SEEN[size]} ({meaning.symbol})"
    return _line(title, f"profile/{size}", f"{meaning.formula} ({meaning.unit})", x=LAYER)


def _pictures() -> list[Any]:
    return [
        wr.MediaBrowser(title=title, media_keys=[key], num_columns=2)
        for title, key in (
            ("Gradient of every layer's weights at every step", "gradient/heatmap"),
            ("Gradient of the weights by depth: the last epoch, and all", "gradient/depth_profile"),
        )
    ]


def _stage_panels() -> list[Any]:
    return [
        _line(f"{stage}: {seen}", f"stage/{stage}/{kind}", formula)
        for kind, (seen, formula) in NORMS.items()
        for stage in STAGES
    ]


def _training_panels() -> list[Any]:
    return [
        _line("Training loss of each batch", "train/loss", "nats, with label smoothing"),
        _line("Validation loss of each epoch", "val/loss", "nats, with label smoothing"),
        _line("Training accuracy of each epoch", "train/accuracy", "share of images", log=False),
        _line("Validation accuracy of each epoch", "val/accuracy", "share of images", log=False),
        _line("Learning rate of each epoch", "lr", "lr"),
    ]
