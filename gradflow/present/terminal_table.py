"""Tables in the terminal, in which every name is shown as it is."""

from collections.abc import Container, Iterable, Sequence

from rich.table import Table
from rich.text import Text, TextType


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    title: TextType | None = None,
    *,
    right: Container[str] = (),
    framed: bool = True,
) -> Table:
    """The columns called in `right` hold numbers."""
    made = Table(title=title, title_justify="left", pad_edge=framed)
    if not framed:
        made.box = None
    for name in columns:
        made.add_column(Text(name), justify="right" if name in right else "left")
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made
