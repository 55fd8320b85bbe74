"""Sections in the terminal, as text for rich."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradflow.analysis.profile import GRADIENT_SIZES
from gradflow.analysis.verdict import Verdict
from gradflow.present.section import Box, Code, Items, Part, Reason, Section, TextTable
from gradflow.present.terminal_plot import depth_picture
from gradflow.present.terminal_table import table

# Of a cell that holds these words.
STYLES = {"main cause": "bold green", "contributor": "green", "not a cause": "dim"}


def letter(*sections: Section) -> RenderableType:
    """Figures, and what is folded away in a page, are left out."""
    lines: list[RenderableType] = []
    for section in sections:
        lines += [Text(section.title, style="bold")]
        lines += [line for part in section.parts for line in _lines(part)]
        lines += [Text()]
    return Group(*lines)


def profiles(verdict: Verdict, *, braille: bool = True) -> RenderableType:
    """Every gradient size by depth, the networks on one scale. Without `braille` in ASCII."""
    lines = ["by depth, input to output, early in training (log scale, mean over seeds)"]
    for size, meaning in GRADIENT_SIZES.items():
        found = {band.network: band.mean for band in verdict.bands if band.size == size}
        unit = f"{meaning.symbol} {size.replace('_', ' ')}, {meaning.unit}"
        lines += depth_picture(found, unit, braille=braille)
    return _indented("\n".join(lines))


def _indented(text: str, by: int = 2) -> Padding:
    return Padding(Text(text), (0, 0, 0, by), expand=False)


def _lines(part: Part) -> list[RenderableType]:
    match part:
        case str():
            return [_indented(part)]
        case Box():
            return [Text(f"\n{part.head}", style="bold"), *map(_indented, part.lines)]
        case Items() if not part.folded:
            title = [Text(f"\n{part.title}", style="bold")] if part.title else []
            numbered = enumerate(part.lines, start=1)
            lines = [f"{i}. {line}" if part.numbered else f"· {line}" for i, line in numbered]
            return [*title, *map(_indented, lines)]
        case TextTable():
            return [Padding(_table(part), (1, 0, 1, 2), expand=False)]
        case Code() if not part.title:
            return [_indented(line) for line in part.lines]
        case list():
            return [line for one in part for line in _reason(one)]
        case _:
            return []


def _reason(one: Reason) -> list[RenderableType]:
    return [
        Text(f"\n  {one.head}", style="bold"),
        _indented(one.question, 4),
        *(_indented(f"· {line}", 4) for line in one.lines),
    ]


def _table(part: TextTable) -> Table:
    rows = [[Text(cell, style=STYLES.get(cell, "")) for cell in row] for row in part.rows]
    title, numbers = Text(part.title) if part.title else None, part.columns[part.n_left :]
    return table(part.columns, rows, title, right=numbers, framed=False)
