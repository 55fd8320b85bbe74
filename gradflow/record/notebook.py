"""What a notebook shows of an object: a title, a table and a small depth profile, as HTML.

Self-contained and escaped. Text and axes take the notebook's own colour, and both line colours
have contrast on white and on black, so that light and dark notebooks both read well.
"""

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gradflow.record.trace import Trace

WIDTH, HEIGHT = 420, 130  # pixels of a profile
LEFT, BOTTOM, TOP = 70, 22, 8  # room for the axis labels
# Two mid tones, told apart in grey by their dashes.
LINES = (("#2f86d0", ""), ("#d9742b", "6 3"), ("#8a8a8a", "2 3"))
MEASURES_SHOWN = ("grad_norm", "output_grad_norm")  # the first that was recorded


def card(title: str, rows: Iterable[tuple[str, object]], *pictures: str) -> str:
    """A title, a table of names and values, and `pictures`, which are HTML already."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(str(name))}</th>'
        f'<td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in rows
    )
    return f"<div><b>{escape(title)}</b><table>{cells}</table>{''.join(pictures)}</div>"


def depth_svg(profiles: Mapping[str, np.ndarray], title: str) -> str:
    """Lines of `profiles`, name -> log10 by layer, input left, on one axis; "" without a value.

    A missing layer is a gap in its line. `title` says what is drawn and its unit.
    """
    finite = [values[np.isfinite(values)] for values in profiles.values()]
    known = np.concatenate([np.empty(0), *finite])
    if not len(known):
        return ""
    low, high = float(known.min()), float(known.max())
    lines = "".join(
        _line(values, low, high, *LINES[i % len(LINES)])
        for i, values in enumerate(profiles.values())
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
        f"{_axes(low, high, max(map(len, profiles.values())))}{lines}</svg>"
    )


def _axes(low: float, high: float, n_layers: int) -> str:
    floor = HEIGHT - BOTTOM
    style = 'fill="currentColor" font-size="11"'
    return (
        f'<path d="M{LEFT} {TOP}V{floor}H{WIDTH}" stroke="currentColor" fill="none"/>'
        f'<text x="{LEFT - 5}" y="{TOP + 8}" text-anchor="end" {style}>{power(high)}</text>'
        f'<text x="{LEFT - 5}" y="{floor}" text-anchor="end" {style}>{power(low)}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}" {style}>layer 1, input</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 6}" text-anchor="end" {style}>{n_layers}</text>'
    )


def power(exponent: float) -> str:
    """10 to this power, also beyond the range of a float.

    >>> power(-3.0), power(-400.0)
    ('0.001', '1e-400')
    """
    return f"{10**exponent:.3g}" if abs(exponent) < 300 else f"1e{exponent:.0f}"


def _line(values: np.ndarray, low: float, high: float, colour: str, dashes: str) -> str:
    """One path; a dot for every layer, so that a single one shows too."""
    x = np.linspace(LEFT + 5, WIDTH - 5, len(values)) if len(values) > 1 else [WIDTH / 2]
    room = HEIGHT - BOTTOM - TOP - 8
    path, dots, is_down = [], [], False
    for here, value in zip(x, values, strict=True):
        if not math.isfinite(value):
            is_down = False
            continue
        y = TOP + 4 + room * (high - value) / ((high - low) or 1.0)
        path.append(f"{'L' if is_down else 'M'}{here:.1f} {y:.1f}")
        dots.append(f'<circle cx="{here:.1f}" cy="{y:.1f}" r="1.8" fill="{colour}"/>')
        is_down = True
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{"".join(path)}" stroke="{colour}" fill="none"{dash}/>{"".join(dots)}'


def trace_profile(trace: "Trace") -> tuple[str, np.ndarray]:
    """The measure shown, and its log10 by layer: the mean over steps where it is above zero."""
    name = next((one for one in MEASURES_SHOWN if one in trace.values), "")
    if not name:
        return "", np.empty(0)
    is_weight = [kind.endswith(".weight") and not kind.startswith("norm") for kind in trace.kinds]
    wanted = is_weight if name == "grad_norm" else ["." not in kind for kind in trace.kinds]
    table = np.asarray(trace.values[name])[:, np.array(wanted, dtype=bool)]
    known = np.isfinite(table) & (table > 0)
    logs = np.log10(np.where(known, table, 1.0)).sum(axis=0)
    n = known.sum(axis=0)
    return name, np.where(n > 0, logs / np.maximum(n, 1), np.nan)


def trace_html(trace: "Trace") -> str:
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
    name, profile = trace_profile(trace)
    rows += profile_rows(profile)
    return card("Trace", rows, depth_svg({name: profile}, "By depth, mean over steps (log scale)"))


def profile_rows(profile: np.ndarray) -> list[tuple[str, object]]:
    """How many times larger the first layer is than the last; nothing where that is unknown."""
    known = profile[np.isfinite(profile)]
    return [("first / last layer", f"{power(known[0] - known[-1])}×")] if len(known) > 1 else []
