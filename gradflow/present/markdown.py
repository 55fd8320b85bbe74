"""Sections as Markdown, for a README or an issue."""

import html
import re
from collections.abc import Sequence
from urllib.parse import quote

from gradflow.present.section import (
    Box,
    Chart,
    Code,
    Items,
    Part,
    Reason,
    Section,
    TextTable,
    Tiles,
)
from gradflow.present.visible import one_line


def markdown(sections: Sequence[Section], folder: str) -> str:
    """The first section is the title of it all; the figures stand in `folder` beside it."""
    blocks = []
    for number, section in enumerate(sections):
        blocks.append(f"{'##' if number else '#'} {plain(section.title)}")
        blocks += [block for part in section.parts for block in _blocks(part, folder)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no tag in it is one, no bracket makes a link, in one line.

    >>> plain("<script>x</script> [a](b)")
    '&lt;script&gt;x&lt;/script&gt; \\\\[a\\\\](b)'
    """
    return re.sub(r"([\\\[\]*])", r"\\\1", html.escape(one_line(text), quote=False))


def _blocks(part: Part, folder: str) -> list[str]:
    match part:
        case str():
            return [plain(part)]
        case Box():
            return [f"**{plain(part.head)}**", *map(plain, part.lines)]
        case Items():
            return [_heading(part.title), _items(part.lines, numbered=part.numbered)]
        case TextTable():
            return [_heading(part.title), table_text(part)]
        case Code():
            return [plain(part.title), _fenced(part)]
        case Tiles():
            return [_items(part.lines)]
        case list():
            return ["\n".join(map(_reason, part))]
        case _:
            return _picture(part, folder)


def _heading(title: str) -> str:
    return f"### {plain(title)}" if title else ""


def _items(lines: Sequence[str], *, numbered: bool = False) -> str:
    return "\n".join(
        f"{f'{i}.' if numbered else '-'} {plain(line)}" for i, line in enumerate(lines, start=1)
    )


def _reason(one: Reason) -> str:
    head = f"- {plain(one.head)}. {plain(one.question)}"
    return "\n".join([head, *(f"  - {plain(line)}" for line in one.lines)])


def table_text(table: TextTable) -> str:
    n_right = len(table.columns) - table.n_left
    rules = ["---"] * table.n_left + ["---:"] * n_right
    rows = [map(_cell, row) for row in (table.columns, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def _cell(text: str) -> str:
    """In one cell of a table: no bar ends it, and no new line."""
    return plain(" ".join(text.split())).replace("|", r"\|")


def _fenced(code: Code) -> str:
    """A block of code that no line in it can close."""
    body = "\n".join(map(one_line, code.lines))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return f"{fence}{code.language}\n{body}\n{fence}"


def _picture(picture: Chart, folder: str) -> list[str]:
    """A link may hold no space."""
    title = plain(picture.title)
    link = f"![{title}]({quote(f'{folder}/{picture.key}.png')})" if picture.is_drawn else ""
    return [link, f"*{title}.* {plain(picture.caption)}"]
