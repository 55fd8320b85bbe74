"""Printing: results go to stdout, everything else to stderr."""

import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from gradflow.present.visible import visible

WIDTH = 160  # where there is no terminal to fit: a file, a pipe


def show(*views: RenderableType) -> None:
    """To stdout; a character that its encoding lacks becomes a question mark."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    console = _console(is_terminal=sys.stdout.isatty())
    for view in views:
        console.print(view, highlight=False)


def show_json(content: Any) -> None:
    """One JSON object on stdout, in ASCII: any terminal and any program can read it."""
    print(json.dumps(content))


def stderr(*, quiet: bool = False) -> Console:
    return _console(is_terminal=sys.stderr.isatty(), stderr=True, quiet=quiet)


def _console(*, is_terminal: bool, stderr: bool = False, quiet: bool = False) -> Console:
    """Text is printed as it is: a folder may be called `holiday [raw]`, a class `:cat:`."""
    width = None if is_terminal else WIDTH
    return _Plain(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False)


class _Plain(Console):
    """A console through which no text of others reaches the terminal as a command to it."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield segment._replace(text=visible(segment.text))


def picture(drawn: Sequence[str]) -> Text:
    """Lines that are cut at the width of the terminal."""
    return Text("\n".join(drawn), no_wrap=True, overflow="ellipsis")


class Bar(Progress):
    """A progress bar with something below it."""

    below: RenderableType = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.below:
            yield self.below


@contextmanager
def progress(
    console: Console,
    name: str,
    total: float | None = None,
    columns: Sequence[TextColumn] = (),
) -> Iterator[tuple[Bar, TaskID]]:
    """A progress bar, on a terminal only, with the time left or, in its place, `columns`."""
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *(columns or (TextColumn("left"), TimeRemainingColumn())),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.quiet,
    )
    with bar:
        yield bar, bar.add_task(name, total=total, left="")
