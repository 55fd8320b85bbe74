"""What a terminal shows of a view."""

import io

from rich.console import Console, RenderableType


def printed(*views: RenderableType, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    for view in views:
        console.print(view, highlight=False)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
