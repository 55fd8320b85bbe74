"""What a notebook shows of a verdict, and of a trace: titles, tables and depth profiles, as HTML.

Self-contained and escaped. Text and axes take the notebook's own colour, and both line colours
have contrast on white and on black, so that light and dark notebooks both read well.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from gradflow.analysis.brief import lines
from gradflow.analysis.numerals import factor
from gradflow.analysis.profile import GRADIENT_SIZES, DepthProfile, depth_profile
from gradflow.analysis.vanishing import JUDGED_SIZES
from gradflow.record.trace import Trace

if TYPE_CHECKING:
    from gradflow.analysis.verdict import Verdict

WIDTH, HEIGHT = 420, 130  # pixels of a profile
LEFT, BOTTOM, TOP = 70, 22, 8  # room for the axis labels
# Two mid tones, told apart in grey by their dashes.
LINES = (("#2f86d0", ""), ("#d9742b", "6 3"), ("#8a8a8a", "2 3"))


def verdict_html(verdict: "Verdict") -> str:
    """The ten lines, the state of each link and rival, and the profiles of δ and ŝ."""
    findings = (
        (f"{one.key}, {one.title}", one.status) for one in (*verdict.links, *verdict.rivals)
    )
    pictures = (_profile(verdict, size) for size in JUDGED_SIZES)
    return card("Verdict", [*lines(verdict), *findings], *pictures)


def _profile(verdict: "Verdict", size: str) -> str:
    meaning = GRADIENT_SIZES[size]
    bands = [band for band in verdict.bands if band.size == size]
    return depth_svg(
        {band.network: band.mean for band in bands},
        f"{meaning.symbol}, {meaning.unit}, early in training (log scale)",
        {band.network: band.layers for band in bands},
    )


def trace_html(trace: Trace) -> str:
    """Steps, sites, measures, NaN and inf, and the depth profile of the gradients."""
    steps = f"{len(trace)}"
    if len(trace):
        steps += f", from {trace.steps[0]} to {trace.steps[-1]}"
    rows: list[tuple[str, object]] = [
        ("recorded steps", steps),
        ("sites", len(trace.sites)),
        ("measures", ", ".join(trace.measures) or "none"),
    ]
    if trace.skipped_steps:
        rows.append(("skipped steps", len(trace.skipped_steps)))
    if bad := trace.nonfinite():
        rows.append(("first NaN or inf", f"step {bad[0].first_step}, {bad[0].site}"))
    profile = gradient_profile(trace)
    rows += profile_rows(profile)
    return card(
        "Trace",
        rows,
        profiles_svg({profile.measure: profile}, "By depth, mean over steps (log scale)"),
    )


def gradient_profile(trace: Trace) -> DepthProfile:
    """log10 of ‖∂L/∂w‖₂ by layer, the mean over steps where it is above zero; empty without one."""
    if "grad_norm" not in trace.values:
        return DepthProfile("grad_norm", (), np.empty(0))
    found = depth_profile(trace)
    with np.errstate(divide="ignore"):
        return DepthProfile(found.measure, found.sites, np.log10(found.values))


def profiles_svg(profiles: Mapping[str, DepthProfile], title: str) -> str:
    return depth_svg(
        {name: one.values for name, one in profiles.items()},
        title,
        {
            name: [site.removesuffix(".weight") for site in one.sites]
            for name, one in profiles.items()
        },
    )


def profile_rows(profile: DepthProfile) -> list[tuple[str, object]]:
    """How many times larger the first layer is than the last; nothing where that is unknown."""
    known = profile.values[np.isfinite(profile.values)]
    return [("first / last layer", f"{factor(known[0] - known[-1])}×")] if len(known) > 1 else []


# -- the pieces ------------------------------------------------------------------------------------


def card(title: str, rows: Iterable[tuple[str, object]], *pictures: str) -> str:
    """A title, a table of names and values, and `pictures`, which are HTML already."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(str(name))}</th>'
        f'<td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in rows
    )
    return f"<div><b>{escape(title)}</b><table>{cells}</table>{''.join(pictures)}</div>"


def depth_svg(
    profiles: Mapping[str, np.ndarray], title: str, layers: Mapping[str, Sequence[str]]
) -> str:
    """Lines of `profiles`, name -> log10 by layer, input left, on one axis; "" without a value.

    A missing layer is a gap in its line. `title` says what is drawn and its unit. `layers` names
    the layers of each: below the ends of the axis, and at each dot under the pointer.
    """
    finite = [values[np.isfinite(values)] for values in profiles.values()]
    known = np.concatenate([np.empty(0), *finite])
    if not len(known):
        return ""
    low, high = float(known.min()), float(known.max())
    lines = "".join(
        _line(values, low, high, layers[name], *LINES[i % len(LINES)])
        for i, (name, values) in enumerate(profiles.items())
    )
    legend = ", ".join(
        f'<span style="color:{LINES[i % len(LINES)][0]}">{"╌" if i % len(LINES) else "─"}─</span> '
        f"{escape(name)}"
        for i, name in enumerate(profiles)
    )
    return (
        f"<div>{escape(title)}: {legend}</div>"
        f'<svg role="img" aria-label="{escape(title)}" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" style="max-width:100%">'
        f"{_axes(low, high, max(layers.values(), key=len))}{lines}</svg>"
    )


def _axes(low: float, high: float, layers: Sequence[str]) -> str:
    first, last = escape(layers[0]), escape(layers[-1])
    floor = HEIGHT - BOTTOM
    style = 'fill="currentColor" font-size="11"'
    return (
        f'<path d="M{LEFT} {TOP}V{floor}H{WIDTH}" stroke="currentColor" fill="none"/>'
        f'<text x="{LEFT - 5}" y="{TOP + 8}" text-anchor="end" {style}>{factor(high)}</text>'
        f'<text x="{LEFT - 5}" y="{floor}" text-anchor="end" {style}>{factor(low)}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}" {style}>1 {first}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 6}" text-anchor="end" {style}>{last} {len(layers)}</text>'
    )


def _line(
    values: np.ndarray, low: float, high: float, layers: Sequence[str], colour: str, dashes: str
) -> str:
    """One path; a dot for every layer, so that a single one shows too."""
    x = np.linspace(LEFT + 5, WIDTH - 5, len(values)) if len(values) > 1 else [WIDTH / 2]
    room = HEIGHT - BOTTOM - TOP - 8
    path, dots, is_down = [], [], False
    for here, value, layer in zip(x, values, layers, strict=True):
        if not math.isfinite(value):
            is_down = False
            continue
        y = TOP + 4 + room * (high - value) / ((high - low) or 1.0)
        path.append(f"{'L' if is_down else 'M'}{here:.1f} {y:.1f}")
        said = f"<title>{escape(layer)}: {factor(value)}</title>"
        dots.append(f'<circle cx="{here:.1f}" cy="{y:.1f}" r="1.8" fill="{colour}">{said}</circle>')
        is_down = True
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{"".join(path)}" stroke="{colour}" fill="none"{dash}/>{"".join(dots)}'
