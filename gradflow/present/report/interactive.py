"""Figures to hover over and to switch. The only module that imports plotly."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from gradflow.analysis.overview import Band
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.present.plots import COLORMAP, STYLES, rate_ticks
from gradflow.present.report.depth import Profile
from gradflow.record.trace import Table

DASHES = ("solid", "dash", "dashdot", "dot", "longdash")  # as plots.STYLES, for grey print
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down")
MAX_STEPS = 400  # columns of a heat map: more would not be seen, and each is text in the page
SMALLEST_SHARE = (
    0.01  # where an axis of shares ends at least: zero everywhere is a line at its foot
)
LAYOUT: dict[str, Any] = {
    "margin": {"l": 60, "r": 15, "t": 40, "b": 80},
    "height": 400,
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"color": "#777", "size": 13},  # where the page does not colour it after its theme
    "legend": {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0, "xanchor": "left",
               "traceorder": "normal"},
}  # fmt: skip
GRID = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "automargin": True}
# Above the legend, and flush with the axis: they would lie on each other on a narrow screen.
MENU_MARGIN = {"margin": LAYOUT["margin"] | {"t": 95}, "height": 420}  # pixels
MENU = {"x": 0, "xanchor": "left", "y": 1.17, "yanchor": "bottom", "pad": {"t": 0, "b": 0}}


def library() -> str:
    """plotly.js, to stand in the page once."""
    return str(get_plotlyjs())


def to_html(figure: go.Figure, key: str) -> str:
    """The figure as a piece of a page that holds `library()`."""
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=key,
        config={"displaylogo": False, "responsive": True},
    )
    return str(html)


def gradient_profiles(bands: Sequence[Band], names: Sequence[str]) -> go.Figure:
    """Every gradient size by depth, early in training: one chosen by a menu, the band of seeds."""
    figure = go.Figure()
    sizes: list[str] = []  # of each line and band
    for size in GRADIENT_SIZES:
        for band in bands:
            if band.size == size:
                profile = Profile(band.layers, 10**band.mean, 10**band.low, 10**band.high)
                added = _add_profile(figure, names.index(band.network), band.network,
                                     profile, size == "output_gradient")  # fmt: skip
                sizes += [size] * added
    _menu(figure, sizes, {size: f"{one.symbol}  {_words(size)} ({one.unit})"
                          for size, one in GRADIENT_SIZES.items()})  # fmt: skip
    figure.update_yaxes(type="log", exponentformat="power", title="size of the gradient")
    figure.update_xaxes(title="layer, input at the left")
    return figure


def layer_profiles(names: Sequence[str], profiles: Mapping[str, Profile], unit: str) -> go.Figure:
    """One measure by depth of each network; its style follows from its place in `names`."""
    figure = _figure()
    for name, profile in profiles.items():
        _add_profile(figure, names.index(name), name, profile, True)
    figure.update_yaxes(title=unit)
    if unit.endswith("share"):
        highest = max(float(np.nanmax(profile.high)) for profile in profiles.values())
        figure.update_yaxes(range=[0, 1.05 * max(highest, SMALLEST_SHARE)])
    figure.update_xaxes(title="layer, input at the left")
    return figure


def heat_map(tables: Mapping[tuple[str, str], Table]) -> go.Figure:
    """A gradient size of every layer at every step; network and size chosen by a menu.

    All share one scale of colours per size, log10.
    """
    figure = go.Figure()
    keys = list(tables)
    for name, size in keys:
        table = thinned(tables[name, size])
        low, high = _limits(tables, size)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log10(table.values.T)
        logs = np.where(np.isfinite(logs), logs, np.nan)
        figure.add_heatmap(
            x=table.steps, y=list(table.sites), z=logs.round(3), zmin=low, zmax=high,
            colorscale=COLORMAP, visible=(name, size) == keys[0],
            colorbar={"title": "log10"},
            hovertemplate="step %{x}<br>%{y}<br>10^%{z:.2f}<extra></extra>",
        )  # fmt: skip
    labels = [f"{name}: {GRADIENT_SIZES[size].symbol} ({GRADIENT_SIZES[size].unit})"
              for name, size in keys]  # fmt: skip
    _menu(figure, labels, {label: label for label in labels})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="optimizer step", rangeslider={"visible": True, "thickness": 0.06})
    figure.update_layout(height=560)
    return figure


def curves(
    by_network: Mapping[str, tuple[np.ndarray, np.ndarray]], lr: Sequence[float], unit: str
) -> go.Figure:
    """Training and validation by epoch, (seeds, epochs) each, over the learning rate."""
    figure = _figure()
    for i, (name, parts) in enumerate(by_network.items()):
        for values, part in zip(parts, ("training", "validation"), strict=True):
            x = np.arange(1, values.shape[1] + 1)
            profile = Profile(tuple(map(str, x)), np.nanmean(values, 0), np.nanmin(values, 0),
                              np.nanmax(values, 0))  # fmt: skip
            _add_profile(figure, i, f"{name}, {part}", profile, True, thin=part == "training", x=x)
    ends = rate_ticks(lr)
    figure.add_scatter(
        x=np.arange(1, len(lr) + 1), y=list(lr), yaxis="y2", name="learning rate",
        line={"color": "#777", "shape": "hvh", "width": 1.5},
    )  # fmt: skip
    figure.update_layout(
        yaxis={"domain": [0.28, 1], "title": unit} | GRID,
        yaxis2={
            "domain": [0, 0.18],
            "type": "log",
            "title": "lr",
            "tickvals": ends,
            "ticktext": [f"{rate:.2g}" for rate in ends],
        }
        | GRID,
        xaxis={"title": "epoch", "anchor": "y2"} | GRID,
        height=480,
    )
    return figure


def thinned(table: Table) -> Table:
    """At most `MAX_STEPS` steps, evenly spaced. For drawing: no number is computed from it."""
    stride = -(-len(table.steps) // MAX_STEPS) or 1
    return Table(table.steps[::stride], table.sites, table.values[::stride])


def _figure() -> go.Figure:
    figure = go.Figure()
    figure.update_layout(**LAYOUT)
    figure.update_xaxes(**GRID)
    figure.update_yaxes(**GRID)
    return figure


def _menu(figure: go.Figure, of_trace: Sequence[str], labels: Mapping[str, str]) -> None:
    """A menu that shows the traces of one choice."""
    buttons = [
        {"label": label, "method": "restyle",
         "args": [{"visible": [one == choice for one in of_trace]}]}
        for choice, label in labels.items()
        if choice in of_trace
    ]  # fmt: skip
    figure.update_layout(**(LAYOUT | MENU_MARGIN), updatemenus=[{"buttons": buttons, **MENU}])
    figure.update_xaxes(**GRID)
    figure.update_yaxes(**GRID)


def _add_profile(
    figure: go.Figure, i: int, name: str, profile: Profile, visible: bool,
    *, thin: bool = False, x: np.ndarray | None = None,
) -> int:  # fmt: skip
    """A line and the band of its seeds; returns how many traces that are."""
    at = list(profile.layers) if x is None else list(x)
    color = str(STYLES[i % len(STYLES)]["color"])
    edges = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "visible": visible}
    figure.add_scatter(x=at, y=profile.low, mode="lines", **edges)
    figure.add_scatter(x=at, y=profile.high, mode="lines", fill="tonexty",
                       fillcolor=_pale(color), **edges)  # fmt: skip
    figure.add_scatter(
        x=at, y=profile.mean, name=name, visible=visible,
        mode="lines" if thin else "lines+markers",
        line={"color": color, "dash": DASHES[i % len(DASHES)], "width": 1 if thin else 2},
        marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 6},
        customdata=np.stack([profile.low, profile.high], axis=-1),
        hovertemplate="%{x}: %{y:.3g} (seeds %{customdata[0]:.3g} to %{customdata[1]:.3g})",
    )  # fmt: skip
    return 3


def _pale(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _limits(tables: Mapping[tuple[str, str], Table], size: str) -> tuple[float, float]:
    """log10 of the smallest and largest value of all networks."""
    values = np.concatenate(
        [table.values.ravel() for (_, one), table in tables.items() if one == size]
    )
    usable = values[np.isfinite(values) & (values > 0)]
    if not len(usable):
        return -1.0, 0.0
    return float(np.log10(usable.min())), float(np.log10(usable.max()))


def _words(size: str) -> str:
    return size.replace("_", " ")
