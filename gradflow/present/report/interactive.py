"""Figures to hover over and to switch. The only module that imports plotly.

What can be chosen is said by the `meta` of each trace, such as {"network": "plain_34"}, and offered
by `<select>` elements above the figure: they follow the page's colours, the keyboard and a phone.
The page's script shows the traces whose `meta` agrees with all of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from gradflow.analysis.overview import Band, Profile
from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.statistics import mean_and_range
from gradflow.present.plots import (
    COLORMAP,
    STYLES,
    kinds_of_layers,
    marks,
    positive_range,
    rate_ticks,
    style_numbers,
)
from gradflow.present.report.content import WINDOWS
from gradflow.present.report.depth import KINDS, Distribution, Measure
from gradflow.record.trace import Table

DASHES = ("solid", "dash", "dashdot", "dot", "longdash")  # as plots.STYLES, for grey print
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down")
MAX_STEPS = 400  # columns of a heat map: more would not be seen, and each is text in the page
SMALLEST = 0.01  # where an axis from zero ends at least: zero everywhere is a line at its foot
LAYOUT: dict[str, Any] = {
    "margin": {"l": 60, "r": 15, "t": 30, "b": 80},
    "height": 390,
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"color": "#777", "size": 13},  # where the page does not colour it after its theme
    "legend": {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0, "xanchor": "left",
               "traceorder": "normal"},
    "modebar": {"orientation": "v"},  # beside the data, not over the legend
}  # fmt: skip
GRID = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "automargin": True}
CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "displayModeBar": "hover",  # else it would lie over the figure all the time
    "responsive": True,
    "showSendToCloud": False,  # a button that would send the numbers to plotly's own server
    # What is left fits beside a legend; on a narrow page the buttons do not show at all.
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
}


# Of each key of `meta`: the label of its `<select>`, and how a value is called in it.
CHOICES: dict[str, tuple[str, Callable[[str], str]]] = {
    "network": ("network", str),
    "size": ("measure", lambda size: f"{GRADIENT_SIZES[size].symbol}, {size.replace('_', ' ')}"),
    "window": ("when", WINDOWS.__getitem__),
    "kind": ("of the", KINDS.__getitem__),
    "moment": ("when", str),
}


def library() -> str:
    """plotly.js, to stand in the page once."""
    return str(get_plotlyjs())


def to_html(key: str, figure: go.Figure) -> str:
    """The figure as a piece of a page that holds `library()`, below what can be chosen."""
    html = figure.to_html(full_html=False, include_plotlyjs=False, div_id=key, config=CONFIG)
    boxes = [_select(key, of, values) for of, values in choices(figure).items()]
    return f'<div class="choices">{"".join(boxes)}</div>{html}' if boxes else str(html)


def choices(figure: go.Figure) -> dict[str, list[str]]:
    """Key of `meta` -> the values that can be chosen, the first of them shown at first."""
    metas = [trace.meta or {} for trace in figure.data]
    found = {key: list(dict.fromkeys(one[key] for one in metas if key in one)) for key in CHOICES}
    return {key: values for key, values in found.items() if len(values) > 1}


def _select(figure: str, key: str, values: Sequence[str]) -> str:
    label, words = CHOICES[key]
    options = "".join(
        f'<option value="{escape(value)}">{escape(words(value))}</option>' for value in values
    )
    names = f'data-figure="{escape(figure)}" data-key="{escape(key)}"'
    return f"<label>{escape(label)} <select {names}>{options}</select></label> "


def gradient_profiles(
    bands: Mapping[str, Sequence[Band]], names: Sequence[str], mark: tuple[str, str] | None = None
) -> go.Figure:
    """Every gradient size by depth in every window, with the band of the seeds.

    `mark` is a gradient size and a layer of its early profile to point at.
    """
    figure, looks = _figure(), style_numbers(names)
    numbered = _is_numbered(band.layers for found in bands.values() for band in found)
    recorded = {band.size for found in bands.values() for band in found}
    sizes = [size for size in GRADIENT_SIZES if size in recorded]
    for window, found in bands.items():
        for band in sorted(found, key=lambda one: names.index(one.network)):
            visible = (band.size, window) == (sizes[0], next(iter(bands)))
            _add_profile(figure, looks[band.network], band.network, band.values(), visible=visible,
                         x=_places(band.layers, numbered), meta=_meta(band.size, window),
                         said=f"<br>{WINDOWS[window]}")  # fmt: skip
    if mark is not None:
        size, layer = mark
        early = {one.network: one for one in bands.get("early", ()) if one.size == size}
        ends = positive_range(
            10.0 ** np.array([one.mean, one.low, one.high]) for one in early.values()
        )
        layers = {network: one.layers for network, one in early.items()}
        for says, network, at in marks(layers, layer, f"differ most: {layer}") if ends else ():
            color = "#888" if network is None else _color(looks[network])
            figure.add_scatter(
                x=2 * [at + 1 if numbered else layer], y=ends, mode="lines", name=says,
                visible=size == sizes[0], meta=_meta(size, "early"), hoverinfo="skip",
                line={"color": color, "width": 1.5, "dash": "dot"},
            )  # fmt: skip
    figure.update_yaxes(type="log", exponentformat="power", title=axis_of(sizes[0]))
    figure.update_xaxes(title=_axis_of_layers(numbered))
    return figure


def layer_profiles(
    names: Sequence[str], profiles: Mapping[str, Profile], measure: Measure
) -> go.Figure:
    """One measure by depth of each network, drawn as in all figures of `names`.

    Layers of two kinds, such as `relu1` and `relu2`, are two lines.
    """
    figure, looks = _figure(), style_numbers(names)
    numbered = _is_numbered(profile.layers for profile in profiles.values())
    for name, profile in profiles.items():
        x = _places(profile.layers, numbered)
        kinds = kinds_of_layers(profile.layers) if measure.by_kind else {"": np.arange(len(x))}
        for number, (kind, at) in enumerate(kinds.items()):
            part = Profile(
                tuple(profile.layers[i] for i in at),
                profile.mean[at], profile.low[at], profile.high[at],
            )  # fmt: skip
            words = f"{name}, {kind}" if len(kinds) > 1 else name
            _add_profile(figure, looks[name], words, part, x=[x[i] for i in at], is_open=number > 0)
    figure.update_yaxes(title=measure.axis)
    if measure.log:
        figure.update_yaxes(type="log", exponentformat="power")
    else:
        highs = np.concatenate([profile.high for profile in profiles.values()])
        highest = float(np.max(highs, where=np.isfinite(highs), initial=SMALLEST))
        figure.update_yaxes(range=[0, 1.05 * highest])
    figure.update_xaxes(title=_axis_of_layers(numbered))
    if not numbered:  # else the layers of the second line would stand behind those of the first
        layers = next(iter(profiles.values())).layers
        figure.update_xaxes(categoryorder="array", categoryarray=list(layers))
    return figure


def heat_map(tables: Mapping[tuple[str, str], Table]) -> go.Figure:
    """A gradient size of every layer at every step.

    All networks share one scale of colours per size, log10.
    """
    figure = _figure()
    keys = list(tables)
    for name, size in keys:
        table = thinned(tables[name, size])
        limits = positive_range(one.values for (_, of), one in tables.items() if of == size)
        low, high = map(float, np.log10(limits or (0.1, 1.0)))
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log10(table.values.T)
        logs = np.where(np.isfinite(logs), logs, np.nan)
        figure.add_heatmap(
            x=table.steps, y=list(table.sites), z=logs.astype(np.float32), zmin=low, zmax=high,
            colorscale=COLORMAP, visible=(name, size) == keys[0],
            meta={"network": name, "size": size},
            colorbar={"title": {"text": f"log10 {axis_of(size)}", "side": "right"}},
            hovertemplate="step %{x}<br>%{y}<br>10^%{z:.2f}<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", title="layer, input at the top")
    figure.update_xaxes(title="optimizer step", rangeslider={"visible": True, "thickness": 0.06})
    figure.update_layout(height=520)
    return figure


def histograms(found: Sequence[Distribution]) -> go.Figure:
    """The share of each layer's elements by power of two; one scale of colours for all."""
    figure = _figure()
    highest = max(float(np.nanmax(one.shares)) for one in found)
    for i, one in enumerate(found):
        shares = np.where(one.shares > 0, one.shares, np.nan)
        figure.add_heatmap(
            x=list(one.layers), y=one.exponents, z=shares.T.astype(np.float32), zmin=0,
            zmax=highest, colorscale=COLORMAP, visible=i == 0,
            meta={"network": one.network, "kind": one.kind, "moment": one.moment},
            colorbar={"title": {"text": "share of elements", "side": "right"}},
            hovertemplate="%{x}<br>2^%{y}: %{z:.3g}<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(title="e, of elements from 2ᵉ to 2ᵉ⁺¹")
    figure.update_xaxes(title=_axis_of_layers(numbered=False))
    return figure


def curves(
    by_network: Mapping[str, tuple[np.ndarray, np.ndarray]], lr: Sequence[float], unit: str
) -> go.Figure:
    """Training and validation by epoch, (seeds, epochs) each, over the learning rate."""
    figure = _figure()
    looks = style_numbers(by_network)
    for name, parts in by_network.items():
        for values, part in zip(parts, ("training", "validation"), strict=True):
            x = np.arange(1, values.shape[1] + 1)
            profile = Profile(tuple(map(str, x)), *mean_and_range(values))
            _add_profile(figure, looks[name], f"{name}, {part}", profile, x=x,
                         thin=part == "training", at="epoch ")  # fmt: skip
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
            "title": "learning<br>rate",
            "tickvals": ends,
            "ticktext": [f"{rate:.2g}" for rate in ends],
        }
        | GRID,
        xaxis={"title": "epoch", "anchor": "y2", "tick0": 1, "dtick": -(-len(lr) // 10) or 1}
        | GRID,
        height=480,
    )
    return figure


def thinned(table: Table) -> Table:
    """At most `MAX_STEPS` steps, evenly spaced. For drawing: no number is computed from it."""
    stride = -(-len(table.steps) // MAX_STEPS) or 1
    return Table(table.steps[::stride], table.sites, table.values[::stride])


def axis_of(size: str) -> str:
    """The symbol of a gradient size and its unit."""
    return f"{GRADIENT_SIZES[size].symbol} ({GRADIENT_SIZES[size].unit})"


def _figure() -> go.Figure:
    figure = go.Figure()
    figure.update_layout(**LAYOUT)
    figure.update_xaxes(**GRID)
    figure.update_yaxes(**GRID)
    return figure


def _is_numbered(layers: Iterable[tuple[str, ...]]) -> bool:
    """Whether the networks have other layers, which then have no names in common on an axis.

    Plotly would put the names that only the second network has behind those of the first.
    """
    return len(set(layers)) > 1


def _places(layers: Sequence[str], numbered: bool) -> Sequence[str] | np.ndarray:
    """Where the layers stand on the axis: by name, or by number from the input."""
    return np.arange(1, len(layers) + 1) if numbered else layers


def _axis_of_layers(numbered: bool) -> str:
    return "layer, counted from the input" if numbered else "layer, input at the left"


def _add_profile(
    figure: go.Figure, i: int, name: str, profile: Profile,
    *, x: Sequence[str] | np.ndarray, visible: bool = True, thin: bool = False,
    is_open: bool = False, meta: Mapping[str, str] | None = None, at: str = "", said: str = "",
) -> None:  # fmt: skip
    """A line and the band of its seeds. Hovering shows `at`, the layer, and what is `said`.

    They are one group of the legend: a click on the name hides the band too, else the axis would
    stay as high as the hidden network.
    """
    color = _color(i)
    shared = {"x": list(x), "legendgroup": name, "visible": visible, "meta": meta}
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(y=profile.low, **edge, **shared)
    figure.add_scatter(y=profile.high, fill="tonexty", fillcolor=_pale(color), **edge, **shared)
    figure.add_scatter(
        y=profile.mean, name=name, **shared,
        mode="lines" if thin else "lines+markers",
        line={"color": color, "dash": DASHES[i % len(DASHES)], "width": 1 if thin else 2},
        marker={"symbol": SYMBOLS[i % len(SYMBOLS)] + "-open" * is_open, "size": 6},
        customdata=np.stack([profile.low, profile.high], axis=-1), text=list(profile.layers),
        hovertemplate=f"{at}%{{text}}: %{{y:.3g}} "
        f"(seeds %{{customdata[0]:.3g}} to %{{customdata[1]:.3g}}){said}",
    )  # fmt: skip


def _meta(size: str, window: str) -> dict[str, str]:
    return {"size": size, "window": window, "ylabel": axis_of(size)}


def _color(i: int) -> str:
    return str(STYLES[i % len(STYLES)]["color"])


def _pale(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"
