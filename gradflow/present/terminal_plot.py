"""Depth profiles as text: braille dots, two by four in each character, or a bar per layer."""

from collections.abc import Mapping

import numpy as np

BLANK = 0x2800  # the braille character without a dot
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # (row, column)
ROWS = 4  # characters: 16 dots tell a sixteenth of the range
LABELS = 10  # characters for the values beside the axis
BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "12345678"  # for a terminal that cannot show the bars
NO_VALUE = "·"


def bar_picture(values: np.ndarray, low: float, high: float, bars: str = BARS) -> str:
    """One bar per value on a log scale from `low` to `high`; a dot where there is no value.

    >>> bar_picture(np.array([1.0, 10.0, 100.0, np.nan]), 1.0, 100.0)
    '▁▅█·'
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        span = np.log(high / low) or 1.0
        height = np.log(values / low) / span
    usable = np.isfinite(height)
    no_value = NO_VALUE if bars == BARS else "."
    levels = np.clip(np.round(np.where(usable, height, 0) * (len(bars) - 1)), 0, len(bars) - 1)
    return "".join(
        bars[int(level)] if known else no_value for level, known in zip(levels, usable, strict=True)
    )


def depth_picture(
    profiles: Mapping[str, np.ndarray],
    unit: str,
    *,
    braille: bool = True,
    width: int = 76,
    rows: int = ROWS,
) -> list[str]:
    """`profiles`, name -> log10 by layer, input first, on one scale; no lines without a value.

    In braille the networks stand side by side, so that no colour is needed, each below its name and
    above its first and its last layer; a missing layer is a gap, and every line is at most `width`
    characters long. Without `braille`, for other terminals, a digit for each layer.
    """
    finite = [values[np.isfinite(values)] for values in profiles.values()]
    known = np.concatenate([np.empty(0), *finite])
    if not len(known):
        return []
    low, high = float(known.min()), float(known.max())
    if braille:
        return _in_braille(profiles, unit, low, high, width, rows)
    return _in_digits(profiles, unit, 10.0**low, 10.0**high)


def _in_digits(profiles: Mapping[str, np.ndarray], unit: str, low: float, high: float) -> list[str]:
    names = max(map(len, profiles))
    return [
        *(f"{name:<{names}}  {bar_picture(10.0**values, low, high, ASCII_BARS)}"
          for name, values in profiles.items()),
        f"{unit}: {ASCII_BARS[0]} is {low:.2g}, {ASCII_BARS[-1]} is {high:.2g}",
    ]  # fmt: skip


def _in_braille(
    profiles: Mapping[str, np.ndarray], unit: str, low: float, high: float, width: int, rows: int
) -> list[str]:
    cells = (width - LABELS - 1) // len(profiles) - 2
    panels = [_panel(values, low, high, cells, rows) for values in profiles.values()]
    labels = [f"{10**high:.2g}", *[""] * (rows - 2), f"{10**low:.2g}"]
    lines = [_row("", [f" {name[:cells]:<{cells}}" for name in profiles])]
    for i, label in enumerate(labels):
        axis = "┤" if label else "│"
        lines.append(_row(label, [axis + panel[i] for panel in panels]))
    lines.append(_row("", ["└" + "─" * cells for _ in panels]))
    counts = [f"layer 1{len(values):>{cells - 7}}" for values in profiles.values()]
    lines.append(_row("", [f" {count}" for count in counts]))
    return [*lines, " " * (LABELS + 1) + unit]


def _row(label: str, panels: list[str]) -> str:
    return f"{label:>{LABELS}} {' '.join(panels)}".rstrip()


def _panel(values: np.ndarray, low: float, high: float, cells: int, rows: int) -> list[str]:
    """The line through `values`, drawn over the whole width."""
    grid = np.zeros((4 * rows, 2 * cells), dtype=bool)
    if not len(values):
        return [" " * cells] * rows
    places = np.linspace(0, len(values) - 1, grid.shape[1])
    # Between two layers the line is straight, and NaN beside NaN.
    left = np.floor(places).astype(int)
    right = np.minimum(left + 1, len(values) - 1)
    share = places - left
    between = np.where(share > 0, (1 - share) * values[left] + share * values[right], values[left])
    # A layer alone between two gaps falls on no column by itself.
    nearest = np.round(np.linspace(0, grid.shape[1] - 1, len(values))).astype(int)
    between[nearest] = values
    usable = np.isfinite(between)
    height = (high - between[usable]) / ((high - low) or 1.0)
    grid[np.round(height * (grid.shape[0] - 1)).astype(int), np.flatnonzero(usable)] = True
    blocks = grid.reshape(rows, 4, cells, 2)
    codes = BLANK + np.einsum("rdcw,dw->rc", blocks, DOTS)
    return ["".join(map(chr, row)) for row in codes]


def can_show_braille(encoding: str | None) -> bool:
    """Whether text in this encoding can hold the picture."""
    try:
        (chr(BLANK) + "┤│└─").encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
